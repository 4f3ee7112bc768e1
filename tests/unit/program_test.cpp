// main.cpp: what it reads of flags, variables and files. The command line as a whole is tested in
// tests/e2e.
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support.hpp"

#define main main_of_the_program
#include "main.cpp"
#undef main

using claude_openai::auth_method;
using claude_openai::options;

TEST_CASE("auth: every auth method has one name, which reads back as it") {
  for (const auto method : {auth_method::detect, auth_method::cli, auth_method::api_key,
                            auth_method::bedrock, auth_method::vertex}) {
    CHECK(try_auth_method(name_of(method)) == method);
  }
  CHECK(name_of(auth_method::api_key) == "api_key");
}

TEST_CASE("auth: the reference wrapper's names of methods are taken, in any case") {
  CHECK(try_auth_method("claude_cli") == auth_method::cli);
  CHECK(try_auth_method("anthropic") == auth_method::api_key);
  CHECK(try_auth_method(" Bedrock ") == auth_method::bedrock);
  CHECK(try_auth_method("VERTEX") == auth_method::vertex);
  CHECK(try_auth_method("") == auth_method::detect);
}

TEST_CASE("auth: an unknown method is refused") {
  for (const std::string wrong : {"apikey", "api-key", "clii", "bedrock,vertex", "openai", "0"}) {
    CAPTURE(wrong);
    CHECK_FALSE(try_auth_method(wrong));
  }
}

TEST_CASE("env file: names and values, with quotes, comments and export") {
  const auto read = parse_env_file(
      "# comment\n\nA=1\r\n  B = two words  \nexport C='its $HOME # all'\nD=\"a\\n\\\"b\\\\\" # "
      "x\n"
      "E=x#y\nF=x # y\nG=\nA=2");
  CHECK(read.at("A") == "2");
  CHECK(read.at("B") == "two words");
  CHECK(read.at("D") == "a\n\"b\\");
  CHECK(read.at("E") == "x#y");
  CHECK(read.at("F") == "x");
  CHECK(read.at("G").empty());
  CHECK(read.size() == 7);
  CHECK(parse_env_file("").empty());
}

TEST_CASE("env file: a line that is none is named by its number") {
  for (const std::string bad : {"A", "=1", "A B=1", "A='x", "A=\"x", "A=\"x\" y", "'A'=1"}) {
    CAPTURE(bad);
    std::string problem;
    try {
      parse_env_file("X=1\n\n" + bad + "\n");
    } catch (const std::invalid_argument& broken) {
      problem = broken.what();
    }
    CHECK(problem.find("line 3") != std::string::npos);
  }
}

TEST_CASE("lists: as a JSON array or with commas") {
  CHECK(parse_list("a, b,,c ") == strings{"a", "b", "c"});
  CHECK(parse_list(R"( ["a,b", "c"] )") == strings{"a,b", "c"});
  CHECK(parse_list("[]").empty());
  CHECK(parse_list("").empty());
  CHECK_THROWS_AS(parse_list("[1]"), std::invalid_argument);
  CHECK_THROWS_AS(parse_list("[\"a\""), std::invalid_argument);
}

TEST_CASE("budgets: an amount of something in a minute or a day") {
  options settings;
  CHECK(add_budget(settings, "usd=2.5/day"));
  CHECK(add_budget(settings, "tokens=1000/minute"));
  CHECK(add_budget(settings, "requests=5/day"));
  CHECK(settings.day_budget.usd == doctest::Approx(2.5));
  CHECK(settings.minute_budget.tokens == 1000);
  CHECK(settings.day_budget.requests == 5);
  CHECK(settings.day_budget.tokens == 0);
  for (const char* bad : {"", "usd", "usd=1", "usd=1/week", "eur=1/day", "usd=x/day", "usd=-1/day",
                          "requests=1.5/day", "tokens=/day", "usd/day=1"}) {
    CAPTURE(bad);
    options fresh;
    CHECK_FALSE(add_budget(fresh, bad));
  }
}

TEST_CASE("version: the number and the text are of one version") {
  const auto parts = claude_openai::text::split(CLAUDE_OPENAI_VERSION, '.');
  REQUIRE(parts.size() == 3);
  int number = 0;
  for (const auto& part : parts) number = 100 * number + std::stoi(part);
  CHECK(number == CLAUDE_OPENAI_VERSION_NUMBER);
}
