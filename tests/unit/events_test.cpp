// [07] events: one answer in neutral form, and its collector.
#include <string>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;

namespace {

turn_result collect(const std::vector<event>& events) {
  collector gathered;
  for (const auto& what : events) gathered.add(what);
  return gathered.result();
}

token_usage usage_of(std::int64_t input, std::int64_t output) {
  token_usage usage;
  usage.input = input;
  usage.output = output;
  return usage;
}

}  // namespace

TEST_CASE("events: only turn_stopped and turn_failed end a turn") {
  CHECK_FALSE(ends_turn(turn_started{}));
  CHECK_FALSE(ends_turn(block_started{}));
  CHECK_FALSE(ends_turn(block_delta{}));
  CHECK_FALSE(ends_turn(block_stopped{}));
  CHECK(ends_turn(turn_stopped{}));
  CHECK(ends_turn(turn_failed{api_error(error_kind::internal, "x")}));
}

TEST_CASE("usage: the prompt is input, cache read and cache write together, once each") {
  token_usage usage;
  usage.input = 1;
  usage.cache_read = 20;
  usage.cache_write = 300;
  usage.cache_write_5m = 100;
  usage.cache_write_1h = 200;
  usage.output = 4000;
  CHECK(usage.prompt() == 321);
}

TEST_CASE("collector: an answer is gathered block by block") {
  const auto result = collect(
      {turn_started{"model-1", usage_of(9, 1)}, block_started{0, block_kind::thinking, {}, {}},
       block_delta{0, "hm"}, block_delta{0, "m"}, block_stopped{0, "signed"},
       block_started{1, block_kind::text, {}, {}}, block_delta{1, "Hello"}, block_delta{1, " you"},
       block_stopped{1, {}}, block_started{2, block_kind::tool_call, "toolu_1", "look"},
       block_delta{2, "{}"}, block_stopped{2, {}},
       turn_stopped{stop_reason::tool_use, "END", usage_of(10, 20)}});
  CHECK(result.model == "model-1");
  REQUIRE(result.blocks.size() == 3);
  CHECK(result.blocks[0].kind == block_kind::thinking);
  CHECK(result.blocks[0].text == "hmm");
  CHECK(result.blocks[0].signature == "signed");
  CHECK(result.blocks[1].kind == block_kind::text);
  CHECK(result.blocks[1].text == "Hello you");
  CHECK(result.blocks[2].kind == block_kind::tool_call);
  CHECK(result.blocks[2].id == "toolu_1");
  CHECK(result.blocks[2].name == "look");
  CHECK(result.blocks[2].text == "{}");
  CHECK(result.reason == stop_reason::tool_use);
  CHECK(result.stop_sequence == "END");
  CHECK(result.usage.input == 10);
  CHECK(result.usage.output == 20);
}

TEST_CASE("collector: an answer without blocks is an answer") {
  const auto result = collect({turn_started{"m", {}}, turn_stopped{stop_reason::refusal, {}, {}}});
  CHECK(result.blocks.empty());
  CHECK(result.reason == stop_reason::refusal);
  CHECK_FALSE(result.usage.cost_usd);
}

TEST_CASE("collector: the turn's failure is thrown whole, whatever came before it") {
  api_error failure(error_kind::rate_limited, "slow down");
  failure.code = "rate_limit_exceeded";
  failure.retry_after = std::chrono::milliseconds(1500);
  failure.retry_is_futile = true;
  for (const bool started : {false, true}) {
    collector gathered;
    if (started) {
      gathered.add(turn_started{"m", {}});
      gathered.add(block_started{});
      gathered.add(block_delta{0, "half"});
    }
    const auto thrown = test::error_of([&] { gathered.add(turn_failed{failure}); });
    CHECK(thrown.kind == error_kind::rate_limited);
    CHECK(thrown.message == "slow down");
    CHECK(thrown.code == "rate_limit_exceeded");
    CHECK(thrown.retry_after == std::chrono::milliseconds(1500));
    CHECK(thrown.retry_is_futile);
  }
}

TEST_CASE("grammar: the checker of these tests notices each kind of breach") {
  const event started = turn_started{};
  const event stopped = turn_stopped{};
  const event failed = turn_failed{api_error(error_kind::internal, "x")};
  const auto block = [](std::size_t i) { return block_started{i, block_kind::text, {}, {}}; };
  const auto delta = [](std::size_t i) { return block_delta{i, "x"}; };
  const auto end = [](std::size_t i) { return block_stopped{i, {}}; };
  const auto fine = [](const std::vector<event>& events) {
    return test::grammar_problem(events).empty();
  };
  CHECK(fine({started, stopped}));
  CHECK(fine({started, block(0), delta(0), end(0), block(1), end(1), stopped}));
  CHECK(fine({failed}));
  CHECK(fine({started, block(0), failed}));
  CHECK_FALSE(fine({}));
  CHECK_FALSE(fine({started}));
  CHECK_FALSE(fine({stopped}));
  CHECK_FALSE(fine({started, started, stopped}));
  CHECK_FALSE(fine({block(0), end(0), started, stopped}));
  CHECK_FALSE(fine({started, block(1), end(1), stopped}));
  CHECK_FALSE(fine({started, block(0), block(1), end(1), stopped}));
  CHECK_FALSE(fine({started, block(0), delta(1), end(0), stopped}));
  CHECK_FALSE(fine({started, block(0), block_delta{0, ""}, end(0), stopped}));
  CHECK_FALSE(fine({started, delta(0), stopped}));
  CHECK_FALSE(fine({started, block(0), end(0), delta(0), stopped}));
  CHECK_FALSE(fine({started, block(0), end(0), end(0), stopped}));
  CHECK_FALSE(fine({started, block(0), stopped}));
  CHECK_FALSE(fine({started, stopped, stopped}));
  CHECK_FALSE(fine({started, failed, stopped}));
}
