// [05] options: what the operator decides.
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using claude_openai::auth_method;
using claude_openai::options;
using claude_openai::try_auth_method;
using claude_openai::try_duration;
using std::chrono::milliseconds;

namespace {

/// The problems of the defaults with one change.
std::vector<std::string> problems_with(const std::function<void(options&)>& change) {
  options settings;
  change(settings);
  return validate(settings);
}

}  // namespace

TEST_CASE("options: the defaults can be run with, on loopback and without a key") {
  const options defaults;
  CHECK(validate(defaults).empty());
  CHECK(defaults.host == "127.0.0.1");
  CHECK(defaults.port == 8000);
  CHECK(defaults.auth == auth_method::detect);
  CHECK(defaults.api_keys.empty());
  CHECK(defaults.spares == 2);
  CHECK(defaults.timeout == std::chrono::seconds(600));
  CHECK(defaults.keep_alive_interval == std::chrono::seconds(15));
  CHECK(defaults.max_body_bytes == 10 * 1024 * 1024);
}

TEST_CASE("options: every auth method has one name, which reads back as it") {
  for (const auto method : {auth_method::detect, auth_method::cli, auth_method::api_key,
                            auth_method::bedrock, auth_method::vertex}) {
    CHECK(try_auth_method(name_of(method)) == method);
  }
  CHECK(name_of(auth_method::api_key) == "api_key");
}

TEST_CASE("options: the reference wrapper's names of methods are taken, in any case") {
  CHECK(try_auth_method("claude_cli") == auth_method::cli);
  CHECK(try_auth_method("anthropic") == auth_method::api_key);
  CHECK(try_auth_method(" Bedrock ") == auth_method::bedrock);
  CHECK(try_auth_method("VERTEX") == auth_method::vertex);
  CHECK(try_auth_method("") == auth_method::detect);
}

TEST_CASE("options: an unknown auth method is refused") {
  for (const std::string wrong : {"apikey", "api-key", "clii", "bedrock,vertex", "openai", "0"}) {
    CAPTURE(wrong);
    CHECK_FALSE(try_auth_method(wrong));
  }
}

TEST_CASE("options: durations are a number and a unit") {
  const std::vector<std::pair<const char*, std::int64_t>> cases = {
      {"600", 600'000}, {"90s", 90'000}, {"10m", 600'000}, {"2h", 7'200'000}, {"500ms", 500},
      {"0", 0},         {"0ms", 0},      {"007s", 7'000},  {"1", 1'000}};
  for (const auto& each : cases) {
    const auto& text = each.first;
    const auto& ms = each.second;
    CAPTURE(text);
    CHECK(try_duration(text) == milliseconds(ms));
  }
}

TEST_CASE("options: what is no duration is refused, and nothing overflows") {
  for (const std::string wrong : {"",
                                  "s",
                                  "ms",
                                  "-1",
                                  "-1s",
                                  "+1",
                                  "1.5s",
                                  "1 s",
                                  " 1s",
                                  "1s ",
                                  "1S",
                                  "1d",
                                  "1sec",
                                  "1mss",
                                  "0x10",
                                  "1e3",
                                  "99999999999999999999",
                                  "1000000001",
                                  "9223372036854775807h",
                                  "१s"}) {
    CAPTURE(wrong);
    CHECK_FALSE(try_duration(wrong));
  }
  CHECK(try_duration("1000000000h") == std::chrono::hours(1'000'000'000));
}

TEST_CASE("options: loopback is localhost, 127.0.0.0/8 and ::1, and no name that looks like it") {
  for (const std::string own : {"localhost", "127.0.0.1", "127.1.2.3", "127.255.255.255", "::1"}) {
    CAPTURE(own);
    CHECK(claude_openai::is_loopback_name(own));
  }
  for (const std::string other :
       {"", "0.0.0.0", "::", "128.0.0.1", "10.0.0.1", "1127.0.0.1", "localhost.evil.com",
        "127.evil.com", "127.0.0.1.evil.com", "127.", "evil-localhost", "::2", "::11"}) {
    CAPTURE(other);
    CHECK_FALSE(claude_openai::is_loopback_name(other));
  }
}

TEST_CASE("validate: each wrong setting gives one sentence that names it") {
  const std::vector<std::pair<std::string, std::function<void(options&)>>> cases = {
      {"port", [](options& o) { o.port = -1; }},
      {"port", [](options& o) { o.port = 65'536; }},
      {"host", [](options& o) { o.host.clear(); }},
      {"timeout", [](options& o) { o.timeout = milliseconds(0); }},
      {"timeout", [](options& o) { o.timeout = milliseconds(-1); }},
      {"spares", [](options& o) { o.spares = -1; }},
      {"spares", [](options& o) { o.spares = 65; }},
      {"max-processes", [](options& o) { o.max_processes = -1; }},
      {"max-processes", [](options& o) { o.max_processes = 1'025; }},
      {"size", [](options& o) { o.max_body_bytes = 0; }},
      {"max-connections", [](options& o) { o.max_connections = 0; }},
      {"model", [](options& o) { o.default_model.clear(); }},
      {"model", [](options& o) { o.default_model = "--dangerously-skip-permissions"; }},
      {"model", [](options& o) { o.default_model = "-"; }},
      {"key", [](options& o) { o.api_keys = {""}; }},
      {"key",
       [](options& o) {
         o.api_keys = {"good", " bad"};
       }},
      {"key", [](options& o) { o.api_keys = {"bad\n"}; }}};
  for (const auto& each : cases) {
    const auto& word = each.first;
    const auto& change = each.second;
    const auto problems = problems_with(change);
    CAPTURE(word);
    REQUIRE(problems.size() == 1);
    CHECK_MESSAGE(problems[0].find(word) != std::string::npos, problems[0]);
  }
}

TEST_CASE("validate: the limits themselves are allowed") {
  const std::vector<std::function<void(options&)>> cases = {
      [](options& o) { o.port = 0; },
      [](options& o) { o.port = 65'535; },
      [](options& o) { o.timeout = milliseconds(1); },
      [](options& o) { o.spares = 0; },
      [](options& o) { o.spares = 64; },
      [](options& o) { o.max_processes = 0; },
      [](options& o) { o.max_processes = 1'024; },
      [](options& o) { o.max_body_bytes = 1; },
      [](options& o) { o.max_connections = 1; },
      [](options& o) { o.host = "0.0.0.0"; },
      [](options& o) {
        o.api_keys = {"a b", "sk-local-1"};
      },
      [](options& o) { o.default_model = "claude-sonnet-4-5-20250929[1m]"; }};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    CAPTURE(i);
    CHECK(problems_with(cases[i]).empty());
  }
}

TEST_CASE("validate: all problems are told at once") {
  const auto problems = problems_with([](options& o) {
    o.port = 70'000;
    o.spares = -5;
    o.default_model.clear();
  });
  CHECK(problems.size() == 3);
}

TEST_CASE("options: this process's environment is read whole") {
  ::setenv("CLAUDE_OPENAI_TEST_A", "a=b=c", 1);
  ::setenv("CLAUDE_OPENAI_TEST_EMPTY", "", 1);
  const auto variables = claude_openai::current_environment();
  ::unsetenv("CLAUDE_OPENAI_TEST_A");
  ::unsetenv("CLAUDE_OPENAI_TEST_EMPTY");
  CHECK(variables.at("CLAUDE_OPENAI_TEST_A") == "a=b=c");
  CHECK(variables.at("CLAUDE_OPENAI_TEST_EMPTY").empty());
  CHECK(variables.count("PATH") == 1);
}

TEST_CASE("options: an empty variable counts as not set") {
  const claude_openai::environment_map variables = {{"A", "1"}, {"EMPTY", ""}};
  CHECK(claude_openai::value_or(variables, "A", "else") == "1");
  CHECK(claude_openai::value_or(variables, "EMPTY", "else") == "else");
  CHECK(claude_openai::value_or(variables, "MISSING", "else") == "else");
  CHECK(claude_openai::value_or(variables, "MISSING").empty());
}
