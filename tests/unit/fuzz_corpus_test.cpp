// Every input that fuzzing has found worth keeping, through its target.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/fuzz/targets.hpp"

TEST_CASE("fuzz: no input of the corpus is a finding") {
  for (const auto& target : fuzz::targets) {
    std::size_t inputs = 0;
    const auto folder = std::string("tests/fuzz/corpus/") + target.name;
    for (const auto& file : std::filesystem::directory_iterator(folder)) {
      std::ifstream stream(file.path(), std::ios::binary);
      const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
      const auto tried = file.path().string();
      CAPTURE(tried);
      CHECK(target.run(bytes) == "");
      ++inputs;
    }
    CAPTURE(target.name);
    CHECK(inputs > 0);
  }
}
