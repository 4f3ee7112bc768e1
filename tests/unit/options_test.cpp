// [05] options: what the operator decides.
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using claude_openai::auth_method;
using claude_openai::options;
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

TEST_CASE("validate: a key that can be guessed is for loopback and the unix socket alone") {
  const auto problems_of = [](const std::string& key, const std::string& host, bool tcp) {
    return problems_with([&](options& o) {
      o.api_keys = {std::string(40, 'k'), key};
      o.host = host;
      o.tcp = tcp;
      o.unix_socket = "s";
    });
  };
  const std::string short_key(15, 'k');
  const std::string long_key(16, 'k');
  for (const std::string host : {"0.0.0.0", "::", "192.168.1.2", "example.org"}) {
    REQUIRE(problems_of(short_key, host, true).size() == 1);
    CHECK(problems_of(short_key, host, true)[0].find("16 characters") != std::string::npos);
    CHECK(problems_of(long_key, host, true).empty());
  }
  CHECK(problems_of(short_key, "0.0.0.0", false).empty());
  CHECK(problems_of(short_key, "127.0.0.1", true).empty());
  CHECK(problems_of(short_key, "localhost", true).empty());
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

TEST_CASE("decimals: digits with one point") {
  using claude_openai::text::try_decimal;
  CHECK(try_decimal("2.5") == doctest::Approx(2.5));
  CHECK(try_decimal("0.125") == doctest::Approx(0.125));
  CHECK(try_decimal("7") == doctest::Approx(7));
  for (const char* bad : {"", ".5", "-1", "1e3", "1.2.3", "x", "1,5"}) {
    CAPTURE(bad);
    CHECK_FALSE(try_decimal(bad));
  }
}

TEST_CASE("options: a negative amount or time, a mode that is none and half a demo are told") {
  CHECK(problems_with([](options& o) { o.queue_timeout = milliseconds(-1); }).size() == 1);
  CHECK(problems_with([](options& o) { o.session_ttl = milliseconds(-1); }).size() == 1);
  CHECK(problems_with([](options& o) { o.keep_alive_interval = milliseconds(-1); }).size() == 1);
  CHECK(problems_with([](options& o) { o.max_queue = -1; }).size() == 1);
  CHECK(problems_with([](options& o) { o.day_budget.usd = -1; }).size() == 1);
  CHECK(problems_with([](options& o) { o.minute_budget.tokens = -1; }).size() == 1);
  CHECK(problems_with([](options& o) { o.permission_mode = "x"; }).size() == 1);
  CHECK(problems_with([](options& o) { o.demo = true; }).size() == 1);
}

TEST_CASE("options: the environment is the program's own unless another is given") {
  CHECK(options().environment == claude_openai::current_environment());
  CHECK_FALSE(options().environment.empty());
}

TEST_CASE("options: transport and origins that cannot be are told") {
  CHECK(problems_with([](options& o) { o.tcp = false; }).size() == 1);
  CHECK(problems_with([](options& o) { o.tls_certificate = "c"; }).size() == 1);
  CHECK(problems_with([](options& o) { o.cors_origins = {"example.com"}; }).size() == 1);
  CHECK(problems_with([](options& o) {
          o.cors_origins = {"*", "https://e.com"};
          o.api_keys = {"key-one"};
        }).empty());
  CHECK(problems_with([](options& o) { o.limits.chat = -1; }).size() == 1);
}

TEST_CASE("live options: keys and limits are taken over, and nothing else") {
  options settings;
  settings.spares = 5;
  claude_openai::live_options live(settings);
  const auto before = live.get();
  options fresh;
  fresh.api_keys = {"k"};
  fresh.default_model = "opus";
  fresh.limits.chat = 3;
  fresh.spares = 9;
  fresh.host = "0.0.0.0";
  live.take(fresh);
  CHECK(before->api_keys.empty());  // a request under way keeps what it began with
  CHECK(live.get()->api_keys == std::vector<std::string>{"k"});
  CHECK(live.get()->default_model == "opus");
  CHECK(live.get()->limits.chat == 3);
  CHECK(live.get()->spares == 5);
  CHECK(live.get()->host == "127.0.0.1");
}
