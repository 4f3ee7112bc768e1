// Drives one target with libFuzzer: FUZZ_TARGET=decoder build/fuzz/tests/fuzz tests/fuzz/corpus/decoder
#include "tests/fuzz/targets.hpp"

#include <cstdio>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto* chosen = [] {
    const char* name = std::getenv("FUZZ_TARGET");
    for (const auto& one : fuzz::targets) {
      if (name != nullptr && std::string_view(one.name) == name) return &one;
    }
    std::fputs("FUZZ_TARGET must name a target of tests/fuzz/targets.hpp\n", stderr);
    std::exit(2);
  }();
  const auto problem = chosen->run({reinterpret_cast<const char*>(data), size});
  if (problem.empty()) return 0;
  std::fprintf(stderr, "%s: %s\n", chosen->name, problem.c_str());
  std::abort();
}
