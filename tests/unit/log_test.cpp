// [04] log: a levelled logger as a value, secrets redacted.
#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using claude_openai::log_level;
using claude_openai::logger;
using claude_openai::redact;

namespace {

using lines = std::vector<std::pair<log_level, std::string>>;

logger logging_to(lines& written, log_level least) {
  return {least,
          [&](log_level level, const std::string& line) { written.emplace_back(level, line); }};
}

void log_at_every_level(const logger& log) {
  log.debug("d");
  log.info("i");
  log.warning("w");
  log.error("e");
}

}  // namespace

TEST_CASE("log: lines below the level are not written") {
  const std::vector<std::pair<log_level, lines>> cases = {
      {log_level::debug,
       {{log_level::debug, "d"},
        {log_level::info, "i"},
        {log_level::warning, "w"},
        {log_level::error, "e"}}},
      {log_level::info,
       {{log_level::info, "i"}, {log_level::warning, "w"}, {log_level::error, "e"}}},
      {log_level::warning, {{log_level::warning, "w"}, {log_level::error, "e"}}},
      {log_level::error, {{log_level::error, "e"}}},
      {log_level::off, {}}};
  for (const auto& [least, expected] : cases) {
    lines written;
    log_at_every_level(logging_to(written, least));
    CHECK(written == expected);
  }
}

TEST_CASE("log: wants says what would be written") {
  lines written;
  const auto log = logging_to(written, log_level::warning);
  CHECK_FALSE(log.wants(log_level::debug));
  CHECK_FALSE(log.wants(log_level::info));
  CHECK(log.wants(log_level::warning));
  CHECK(log.wants(log_level::error));
  CHECK_FALSE(log.wants(log_level::off));
  CHECK_FALSE(logging_to(written, log_level::off).wants(log_level::off));
  CHECK_FALSE(logging_to(written, log_level::off).wants(log_level::error));
}

TEST_CASE("log: a logger without a sink says nothing and does not crash") {
  const logger silent;
  log_at_every_level(silent);
  CHECK_FALSE(silent.wants(log_level::error));
  const logger no_sink(log_level::debug, nullptr);
  log_at_every_level(no_sink);
  CHECK_FALSE(no_sink.wants(log_level::error));
}

TEST_CASE("log: copies share one sink, and lines of many threads are written one at a time") {
  int inside = 0;
  bool overlapped = false;
  int count = 0;
  const logger log(log_level::info, [&](log_level, const std::string&) {
    overlapped = overlapped || ++inside != 1;
    ++count;
    --inside;
  });
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([copy = log] {
      for (int n = 0; n < 500; ++n) copy.info("line");
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(count == 2000);
  CHECK_FALSE(overlapped);
}

TEST_CASE("log: every line is redacted on its way to the sink") {
  lines written;
  logging_to(written, log_level::info).error("key sk-ant-api03-abcdefgh refused");
  REQUIRE(written.size() == 1);
  CHECK(written[0].second.find("abcdefgh") == std::string::npos);
  CHECK(written[0].second.find("refused") != std::string::npos);
}

TEST_CASE("log: level names are in the order of the levels") {
  CHECK(claude_openai::log_level_names.at(static_cast<std::size_t>(log_level::debug)) == "debug");
  CHECK(claude_openai::log_level_names.at(static_cast<std::size_t>(log_level::info)) == "info");
  CHECK(claude_openai::log_level_names.at(static_cast<std::size_t>(log_level::warning)) ==
        "warning");
  CHECK(claude_openai::log_level_names.at(static_cast<std::size_t>(log_level::error)) == "error");
  CHECK(claude_openai::log_level_names.at(static_cast<std::size_t>(log_level::off)) == "off");
}

TEST_CASE("redact: keys, tokens and bearer values are masked, whatever surrounds them") {
  for (const std::string secret : {"sk-ant-api03-Zm9vYmFy_QUJD-x.y", "sk-local-0123456789",
                                   "sk-proj-ABCDEFGH", "AKIAIOSFODNN7"}) {
    for (const std::string around : {"", "\"", "(", " ", "=", ":", "\n", "\xC3\xA9"}) {
      const auto line = "key" + around + " " + secret + around + " end";
      CAPTURE(line);
      const auto safe = redact(line);
      const auto unique = secret.substr(secret.size() - 8);
      CHECK(safe.find(unique) == std::string::npos);
      CHECK(safe.find("***") != std::string::npos);
      CHECK(safe.find(" end") != std::string::npos);
    }
  }
}

TEST_CASE("redact: a bearer value is masked to its end, whatever a token may hold (RFC 6750)") {
  for (const std::string scheme : {"Bearer ", "bearer ", "BEARER ", "BeArEr "}) {
    for (const std::string token :
         {"abcdefgh/secretpart", "abc/defghijklmnop", "abcdefgh+secretpart", "abcdefgh~secretpart",
          "abcdefghsecretpart==", "eyJhbGciOi.eyJzdWIiOi.secretpart"}) {
      const auto safe = redact("Authorization: " + scheme + token + ", next");
      CAPTURE(safe);
      CHECK(safe.find("secretpart") == std::string::npos);
      CHECK(safe.find("defghijk") == std::string::npos);
      CHECK(safe.find(", next") != std::string::npos);
    }
  }
}

TEST_CASE("redact: every secret of a line is masked, neighbours too") {
  const auto safe = redact("sk-aaaaaaaaaa sk-bbbbbbbbbb Bearer sk-cccccccccc,Bearer dddddddddd");
  for (const std::string secret : {"aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"}) {
    CAPTURE(secret);
    CHECK(safe.find(secret) == std::string::npos);
  }
}

TEST_CASE("redact: text without a secret is left as it is") {
  for (const std::string line :
       {"", "GET /v1/models 200 3 ms", "claude ended unexpectedly (exit code 1)", "bearer of news",
        "sk-", "Bearer ", "a\xFFz", "Grüße"}) {
    CAPTURE(line);
    CHECK(redact(line) == line);
  }
}

TEST_CASE("redact: a secret is cut out at the very start and at the very end of a line") {
  CHECK(redact("sk-abcdefghij").find("abcdefghij") == std::string::npos);
  CHECK(redact("x sk-abcdefghij").find("abcdefghij") == std::string::npos);
  CHECK(redact("Bearer abcdefghij").find("abcdefghij") == std::string::npos);
}

TEST_CASE("mask_fields: texts of fields that are named like secrets are masked, and nothing else") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"api_key":"a","x":"b"})", R"({"api_key":"***","x":"b"})"},
      {R"({"PASSWORD" : "a\"b\\", "x":"b"})", R"({"PASSWORD" : "***", "x":"b"})"},
      {R"({"token":""})", R"({"token":"***"})"},
      {R"({"secret":"cut of)", R"({"secret":"***)"},
      {R"({"max_tokens":5,"key":{"a":"b"},"keys":["a"]})",
       R"({"max_tokens":5,"key":{"a":"b"},"keys":["a"]})"},
      {R"({"x":"token","y":"a"})", R"({"x":"token","y":"a"})"},
      {R"({"x":"{\"token\": \"a\\\"b\",\"y\":\"c\"}"})",
       R"({"x":"{\"token\": \"***\",\"y\":\"c\"}"})"},
      {R"(data: {"jwt":"a"})", R"(data: {"jwt":"***"})"},
      {"", ""},
      {"\"", "\""},
      {R"("\)", R"("\)"},
      {R"("key":)", R"("key":)"},
      {R"(\":\")", R"(\":\")"}};
  for (const auto& [given, masked] : cases) {
    const auto& shown = given;  // C++17 captures no binding
    CAPTURE(shown);
    CHECK(claude_openai::mask_fields(given) == masked);
  }
  CHECK(claude_openai::mask_query("/x?a=b&api_key=c&d") == "/x?a=b&api_key=***&d");
  CHECK(claude_openai::mask_query("/x?token=c") == "/x?token=***");
  CHECK(claude_openai::mask_query("/key=a?b&c=d") == "/key=a?b&c=d");
}

TEST_CASE("log: lines for programs are whole JSON objects, redacted too") {
  lines written;
  const logger log(
      log_level::info,
      [&](log_level level, const std::string& line) { written.emplace_back(level, line); },
      claude_openai::log_format::object);
  log.info("a \"quoted\" sk-abcdefghijklmnop\xFF");
  log.write(log_level::error, "it failed", claude_openai::json::object({{"status", 500}}));
  REQUIRE(written.size() == 2);
  const auto first = test::json::parse(written[0].second);
  CHECK(first["level"] == "info");
  CHECK(first["message"].get<std::string>().find("abcdefghij") == std::string::npos);
  CHECK(first["time"].get<std::string>().size() == 24);
  const auto second = test::json::parse(written[1].second);
  CHECK(second["status"] == 500);
  CHECK(second["level"] == "error");
}

TEST_CASE("log: the level can change while copies are in use") {
  lines written;
  const auto log = logging_to(written, log_level::error);
  const logger copy = log;
  log.set_level(log_level::debug);
  copy.debug("d");
  CHECK(written.size() == 1);
}
