// [25] limits: how often a client may ask, and how much it may use.
#include <string>
#include <vector>

#include "tests/support.hpp"

using claude_openai::api_error;
using claude_openai::budget;
using claude_openai::client_address;
using claude_openai::endpoint_group;
using claude_openai::is_in_network;
using claude_openai::is_limited;
using claude_openai::limiter;
using claude_openai::options;
using claude_openai::rate_limits;
using claude_openai::token_usage;

namespace {

/// Counts until it is refused; at most `most` times. A minute may end meanwhile, so it tries twice.
int allowed_in_a_minute(endpoint_group group, const rate_limits& limits, int most) {
  int best = most;
  for (int round = 0; round < 2; ++round) {
    limiter limits_of_all;
    int allowed = 0;
    while (allowed < most && limits_of_all.count(group, "1.2.3.4", limits).allowed) ++allowed;
    best = std::min(best, allowed);
  }
  return best;
}

std::string refusal(limiter& limits, const std::string& client, const options& settings,
                    const budget& wanted = {1, 100, 0.1}) {
  try {
    limits.reserve(client, wanted, settings);
    return {};
  } catch (const api_error& error) {
    CHECK(http_status(error.kind) == 429);
    CHECK(error.code == "budget_exceeded");
    REQUIRE(error.retry_after);
    CHECK(error.retry_after->count() > 0);
    return error.message;
  }
}

token_usage used(std::int64_t input, std::int64_t output, double usd) {
  token_usage usage;
  usage.input = input;
  usage.output = output;
  usage.charge_usd = usd;
  return usage;
}

}  // namespace

TEST_CASE("limits: each group has its own count, and the reference wrapper's numbers") {
  const rate_limits limits;
  CHECK(allowed_in_a_minute(endpoint_group::chat, limits, 100) == 10);
  CHECK(allowed_in_a_minute(endpoint_group::debug, limits, 100) == 2);
  CHECK(allowed_in_a_minute(endpoint_group::auth, limits, 100) == 10);
  CHECK(allowed_in_a_minute(endpoint_group::session, limits, 100) == 15);
  CHECK(allowed_in_a_minute(endpoint_group::health, limits, 100) == 30);
  CHECK(allowed_in_a_minute(endpoint_group::other, limits, 100) == 30);
  CHECK(allowed_in_a_minute(endpoint_group::none, limits, 100) == 100);
}

TEST_CASE("limits: a client that is refused does not stand in another's way") {
  limiter all;
  rate_limits limits;
  limits.chat = 0;
  CHECK_FALSE(all.count(endpoint_group::chat, "a", limits).allowed);
  CHECK(all.count(endpoint_group::health, "a", limits).allowed);
  limits.chat = 1;
  CHECK(all.count(endpoint_group::chat, "b", limits).allowed);
  const auto second = all.count(endpoint_group::chat, "b", limits);
  CHECK(second.limit == 1);
  CHECK(second.remaining == 0);
  CHECK(second.reset.count() > 0);
  CHECK(second.reset.count() <= 60'000);
}

TEST_CASE("limits: on beyond loopback, off on it, and as the operator says") {
  options settings;
  CHECK_FALSE(is_limited(settings));
  settings.host = "0.0.0.0";
  CHECK(is_limited(settings));
  settings.tcp = false;
  CHECK_FALSE(is_limited(settings));
  settings.limits.enabled = true;
  CHECK(is_limited(settings));
  settings.tcp = true;
  settings.limits.enabled = false;
  CHECK_FALSE(is_limited(settings));
}

TEST_CASE("limits: a budget is each key's own, and spent by what answers have cost") {
  limiter limits;
  options settings;
  settings.day_budget.usd = 1.5;
  settings.day_budget.tokens = 1000;
  const budget reserved{1, 100, 0.1};
  CHECK(refusal(limits, "a", settings).empty());
  limits.charge("a", reserved, used(100, 100, 1.0));
  CHECK(refusal(limits, "a", settings).empty());
  limits.charge("a", reserved, used(0, 0, 0.5));
  CHECK(refusal(limits, "a", settings).find("US dollars for one day is used up") !=
        std::string::npos);
  CHECK(refusal(limits, "b", settings).empty());
  limits.charge("b", reserved, used(600, 400, 0));
  CHECK(refusal(limits, "b", settings).find("tokens") != std::string::npos);
  settings.day_budget = {};
  CHECK(refusal(limits, "a", settings).empty());
}

TEST_CASE("limits: requests are counted when they come, each choice of them, and none goes over") {
  limiter limits;
  options settings;
  settings.day_budget.requests = 5;
  CHECK(refusal(limits, "a", settings, {3, 0, 0}).empty());
  CHECK(refusal(limits, "a", settings, {3, 0, 0}).find("requests") != std::string::npos);
  CHECK(refusal(limits, "a", settings, {2, 0, 0}).empty());
  CHECK(refusal(limits, "a", settings, {1, 0, 0}).find("is used up") != std::string::npos);
}

TEST_CASE("limits: what runs is held back, so that many at once do not go over together") {
  for (const bool tokens : {false, true}) {
    CAPTURE(tokens);
    limiter limits;
    options settings;
    (tokens ? settings.minute_budget : settings.day_budget) = {0, tokens ? 1000 : 0, 1.0};
    const budget wanted{1, 400, 0.4};
    CHECK(refusal(limits, "a", settings, wanted).empty());
    CHECK(refusal(limits, "a", settings, wanted).empty());
    CHECK(refusal(limits, "a", settings, wanted).find("requests under way") != std::string::npos);
    CHECK(refusal(limits, "a", settings, {1, 100, 0.1}).empty());
    CHECK(refusal(limits, "b", settings, wanted).empty());
    // What was not used is free again.
    limits.charge("a", wanted, used(5, 5, 0.01));
    CHECK(refusal(limits, "a", settings, {1, 390, 0.39}).empty());
    CHECK(refusal(limits, "a", settings, {1, 390, 0.39}).find("under way") != std::string::npos);
  }
}

TEST_CASE("limits: one request alone may go over a budget that has something left") {
  limiter limits;
  options settings;
  settings.day_budget = {0, 100, 0.1};
  const budget wanted{1, 50'000, 5};
  CHECK(refusal(limits, "a", settings, wanted).empty());
  limits.charge("a", wanted, used(40, 40, 0.08));
  CHECK(refusal(limits, "a", settings, wanted).empty());
  limits.charge("a", wanted, used(4000, 40, 0.8));
  CHECK(refusal(limits, "a", settings, wanted).find("is used up") != std::string::npos);
}

TEST_CASE("limits: what takes no tokens and no dollars is refused for none of them") {
  limiter limits;
  options settings;
  settings.day_budget = {0, 100, 0.1};
  CHECK(refusal(limits, "a", settings).empty());
  limits.charge("a", {1, 100, 0.1}, used(100, 100, 1));
  CHECK(refusal(limits, "a", settings, {1, 0, 0}).empty());
}

TEST_CASE("limits: what was charged ahead and is told to be less comes back, down to nothing") {
  limiter limits;
  options settings;
  settings.day_budget.usd = 1;
  CHECK(refusal(limits, "a", settings).empty());
  limits.charge("a", {1, 100, 0.1}, used(0, 0, 1.5));
  CHECK_FALSE(refusal(limits, "a", settings).empty());
  limits.charge("a", {0, 0, 0}, used(0, 0, -0.75));
  CHECK(refusal(limits, "a", settings).empty());
  limits.charge("a", {1, 100, 0.1}, used(0, 0, -9));
  limits.charge("a", {0, 0, 0}, used(0, 0, 1.0));
  CHECK_FALSE(refusal(limits, "a", settings).empty());
}

TEST_CASE("limits: whoever guesses keys waits longer and longer, but not for ever") {
  limiter limits;
  auto last = std::chrono::milliseconds(0);
  for (int i = 0; i < 20; ++i) {
    limits.try_key("1.1.1.1");
    const auto next = limits.wrong_key_delay("1.1.1.1");
    CHECK(next.count() > 0);
    if (next < last) CHECK(next.count() <= 50);  // another minute has begun
    CHECK(next.count() <= 2000);
    last = next;
  }
  CHECK(limits.wrong_key_delay("2.2.2.2").count() <= 50);
}

TEST_CASE("limits: an address that sent too many wrong keys is not compared any more") {
  int most = 0;
  for (int round = 0; round < 2 && most != 30; ++round) {  // a minute may end meanwhile
    limiter limits;
    for (most = 0; most < 100 && !limits.try_key("1.1.1.1"); ++most) {
    }
    const auto wait = limits.try_key("1.1.1.1");
    CHECK((!wait || (wait->count() > 0 && wait->count() <= 60'000)));
    CHECK_FALSE(limits.try_key("2.2.2.2"));
  }
  CHECK(most == 30);
}

TEST_CASE("limits: right keys are not counted, and an address that showed one is not shut out") {
  limiter limits;
  for (int i = 0; i < 100; ++i) {
    REQUIRE_FALSE(limits.try_key("1.1.1.1"));
    limits.note_right_key("1.1.1.1");
  }
  CHECK(limits.wrong_key_delay("1.1.1.1").count() <= 25);
  for (int i = 0; i < 100; ++i) CHECK_FALSE(limits.try_key("1.1.1.1"));
  CHECK(limits.wrong_key_delay("1.1.1.1").count() <= 2000);
  // One holder of a key at 20,000 addresses takes no memory for each.
  for (int i = 0; i < 20'000; ++i) limits.note_right_key("10.0." + std::to_string(i));
  CHECK_FALSE(limits.try_key("10.0.19999"));
}

TEST_CASE("limits: the error is the reference wrapper's, with the true time") {
  const auto error = claude_openai::rate_limit_error(std::chrono::milliseconds(12'345));
  const auto body =
      test::json::parse(claude_openai::openai_chat::render_error(error, "req_1"))["error"];
  CHECK(body["message"] == "Rate limit exceeded. Try again in 13 seconds.");
  CHECK(body["type"] == "rate_limit_exceeded");
  CHECK(body["code"] == "too_many_requests");
  CHECK(body["retry_after"] == 13);
  const auto other =
      test::json::parse(claude_openai::anthropic_messages::render_error(error, "req_1"));
  CHECK(other["error"]["type"] == "rate_limit_error");
}

TEST_CASE("networks: an address is in it by its first bits") {
  CHECK(is_in_network("10.1.2.3", "10.0.0.0/8"));
  CHECK_FALSE(is_in_network("11.1.2.3", "10.0.0.0/8"));
  CHECK(is_in_network("192.168.1.129", "192.168.1.128/25"));
  CHECK_FALSE(is_in_network("192.168.1.127", "192.168.1.128/25"));
  CHECK(is_in_network("1.2.3.4", "1.2.3.4"));
  CHECK_FALSE(is_in_network("1.2.3.5", "1.2.3.4"));
  CHECK(is_in_network("1.2.3.4", "0.0.0.0/0"));
  CHECK(is_in_network("fd00::1", "fd00::/8"));
  CHECK_FALSE(is_in_network("fe80::1", "fd00::/8"));
  CHECK_FALSE(is_in_network("1.2.3.4", "::/0"));
  CHECK(is_in_network("unix", "unix"));
  for (const char* network : {"", "x", "1.2.3.4/33", "1.2.3.4/-1", "1.2.3.4/x", "1.2.3.4/"}) {
    CAPTURE(network);
    CHECK_FALSE(is_in_network("1.2.3.4", network));
  }
}

TEST_CASE("addresses: only trusted proxies are believed, from the last one back") {
  const std::vector<std::string> trusted = {"127.0.0.1", "10.0.0.0/8"};
  CHECK(client_address("9.9.9.9", "1.1.1.1", trusted) == "9.9.9.9");
  CHECK(client_address("127.0.0.1", "1.1.1.1", trusted) == "1.1.1.1");
  CHECK(client_address("127.0.0.1", "6.6.6.6, 1.1.1.1, 10.0.0.7", trusted) == "1.1.1.1");
  CHECK(client_address("127.0.0.1", "", trusted) == "127.0.0.1");
  CHECK(client_address("127.0.0.1", "1.1.1.1", {}) == "127.0.0.1");
}
