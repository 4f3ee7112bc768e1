// [11] cli_protocol: the lines of a turn, decoded to events. The real CLI's lines are in
// tests/golden; here is what they could be.
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/cli_lines.hpp"

using namespace cli_lines;

TEST_CASE("decoder: a plain answer") {
  const auto all = decode(hello() + std::vector<json>{result()});
  REQUIRE(all.told.size() == 6);
  CHECK(std::get<turn_started>(all.told[0]).model == "model-1");
  CHECK(std::get<turn_started>(all.told[0]).usage.input == 11);
  CHECK(std::get<block_started>(all.told[1]).kind == block_kind::text);
  CHECK(deltas_of(all.told) == std::vector<std::string>{"Hel", "lo"});
  const auto end = test::end_of(all.told).value();
  CHECK(end.reason == stop_reason::end_turn);
  CHECK(end.usage.input == 11);
  CHECK(end.usage.output == 7);
  CHECK(end.usage.cost_usd == 0.5);
  CHECK(all.finished);
  CHECK_FALSE(all.cut);
}

TEST_CASE("decoder: each delta is told with the line that brings it") {
  turn_decoder decoder;
  std::vector<std::size_t> counts;
  for (const auto& one : hello() + std::vector<json>{result()}) {
    events out;
    decoder.decode(one, out);
    counts.push_back(out.size());
  }
  // message_start, block_start, 2 deltas, block_stop, message_delta, message_stop, result
  CHECK(counts == std::vector<std::size_t>{1, 1, 1, 1, 0, 1, 0, 1});
}

TEST_CASE("decoder: all kinds of input tokens are counted, the last word of the API counts") {
  const auto all = decode(
      {message_start("m1", R"({"input_tokens":100,"cache_read_input_tokens":30,
          "cache_creation_input_tokens":12,"output_tokens":1,
          "cache_creation":{"ephemeral_5m_input_tokens":2,"ephemeral_1h_input_tokens":10}})"),
       text_start(), text_delta("x"), block_stop(),
       message_delta(R"("end_turn")", R"({"output_tokens":20,"cache_read_input_tokens":31})"),
       result()});
  const auto usage = test::end_of(all.told).value().usage;
  CHECK(usage.input == 100);
  CHECK(usage.cache_read == 31);
  CHECK(usage.cache_write == 12);
  CHECK(usage.cache_write_5m == 2);
  CHECK(usage.cache_write_1h == 10);
  CHECK(usage.output == 20);
  CHECK(usage.prompt() == 143);
}

TEST_CASE("decoder: null and odd token counts change nothing") {
  const auto all =
      decode({message_start("m1", R"({"input_tokens":5,"output_tokens":1})"), text_start(),
              text_delta("x"), block_stop(),
              message_delta(R"("end_turn")", R"({"input_tokens":null,"output_tokens":"many"})"),
              result()});
  CHECK(test::end_of(all.told).value().usage.input == 5);
  CHECK(test::end_of(all.told).value().usage.output == 1);
}

TEST_CASE("decoder: absurd token counts do not overflow") {
  const std::string absurd = R"({"input_tokens":9223372036854775807,"output_tokens":1e300})";
  const auto all =
      decode({message_start("m1", absurd), text_start(), text_delta("x"), block_stop(),
              message_delta(R"("tool_use")", absurd), message_start("m2", absurd), text_start(),
              text_delta("y"), block_stop(), message_delta(R"("end_turn")", absurd), result()});
  CHECK(all.finished);
  if (const auto end = test::end_of(all.told)) openai_chat::render_usage(end->usage);
}

TEST_CASE("decoder: every stop reason") {
  const std::vector<std::pair<std::string, stop_reason>> reasons = {
      {"end_turn", stop_reason::end_turn},
      {"stop_sequence", stop_reason::stop_sequence},
      {"max_tokens", stop_reason::max_tokens},
      {"model_context_window_exceeded", stop_reason::max_tokens},
      {"tool_use", stop_reason::end_turn},  // without a call there is nothing to wait for
      {"refusal", stop_reason::refusal},
      {"pause_turn", stop_reason::end_turn},
      {"something_new", stop_reason::end_turn}};
  for (const auto& each : reasons) {
    const auto& name = each.first;
    const auto& reason = each.second;
    CAPTURE(name);
    const auto all = decode(hello('"' + name + '"') + std::vector<json>{result()});
    CHECK(test::end_of(all.told).value().reason == reason);
    CHECK(test::text_of(all.told) == "Hello");
  }
}

TEST_CASE("decoder: the stop sequence that was met is told") {
  auto lines = hello();
  lines[5] = streamed(R"({"type":"message_delta","delta":{"stop_reason":"stop_sequence",
                          "stop_sequence":"END"},"usage":{}})");
  const auto all = decode(lines + std::vector<json>{result()});
  CHECK(test::end_of(all.told).value().stop_sequence == "END");
}

TEST_CASE("decoder: where the CLI would go on by itself, the answer ends at once and is cut") {
  for (const std::string reason : {R"("max_tokens")", R"("refusal")"}) {
    CAPTURE(reason);
    const auto all = decode(hello(reason));
    REQUIRE(all.finished);
    CHECK(all.cut);
    CHECK_FALSE(test::end_of(all.told).value().usage.cost_usd);
    const auto with_more = decode(hello(reason) + hello() + std::vector<json>{result()});
    CHECK(with_more.told.size() == all.told.size());
    CHECK(test::text_of(with_more.told) == "Hello");
  }
}

TEST_CASE("decoder: an empty answer ends at once and is cut") {
  const std::vector<std::vector<json>> empties = {
      {message_start("m1"), message_delta(R"("end_turn")")},
      {message_start("m1"), text_start(), block_stop(), message_delta(R"("end_turn")")},
      {message_start("m1"), text_start(), text_delta(""), block_stop(),
       message_delta(R"("end_turn")")}};
  for (const auto& lines : empties) {
    const auto all = decode(lines);
    CHECK(all.finished);
    CHECK(all.cut);
    CHECK(deltas_of(all.told).empty());
    CHECK(test::end_of(all.told).value().reason == stop_reason::end_turn);
  }
}

TEST_CASE("decoder: an ordinary answer ends with the result, which knows the cost") {
  const auto all = decode(hello());
  CHECK_FALSE(all.finished);
  CHECK_FALSE(all.cut);
}

TEST_CASE("decoder: nothing is told after the end") {
  for (const auto& first : {hello() + std::vector<json>{result()}, hello(R"("refusal")"),
                            std::vector<json>{failed_result("429", "x")}}) {
    turn_decoder decoder;
    events out;
    for (const auto& one : first) decoder.decode(one, out);
    REQUIRE(decoder.finished());
    const auto count = out.size();
    for (const auto& one : hello() + std::vector<json>{result(), failed_result("500", "y")}) {
      decoder.decode(one, out);
    }
    decoder.fail(api_error(error_kind::bad_gateway, "late"), out);
    CHECK(out.size() == count);
  }
}

TEST_CASE("decoder: fail ends the turn wherever it is, once") {
  const auto lines = hello();
  for (std::size_t count = 0; count <= lines.size(); ++count) {
    turn_decoder decoder;
    events out;
    for (std::size_t i = 0; i < count; ++i) decoder.decode(lines[i], out);
    decoder.fail(api_error(error_kind::bad_gateway, "gone"), out);
    decoder.fail(api_error(error_kind::bad_gateway, "again"), out);
    CHECK(decoder.finished());
    CHECK(test::grammar_problem(out) == "");
    CHECK(test::failure_of(out).value().message == "gone");
  }
}

TEST_CASE("decoder: thinking, its signature and tool calls are blocks of their own kinds") {
  const auto all = decode(
      {message_start("m1"), block_start(0, R"({"type":"thinking","thinking":"","signature":""})"),
       delta(0, R"({"type":"thinking_delta","thinking":"hm"})"),
       delta(0, R"({"type":"signature_delta","signature":"sig"})"), block_stop(0), text_start(1),
       text_delta("Look.", 1), block_stop(1),
       block_start(2, R"({"type":"tool_use","id":"t1","name":"look","input":{}})"),
       delta(2, R"({"type":"input_json_delta","partial_json":""})"),
       delta(2, R"({"type":"input_json_delta","partial_json":"{\"a\""})"),
       delta(2, R"({"type":"input_json_delta","partial_json":":1}"})"), block_stop(2),
       message_delta(R"("tool_use")"), message_stop(), result()});
  collector answer;
  for (const auto& what : all.told) answer.add(what);
  const auto& blocks = answer.result().blocks;
  REQUIRE(blocks.size() == 3);
  CHECK(blocks[0].kind == block_kind::thinking);
  CHECK(blocks[0].text == "hm");
  CHECK(blocks[0].signature == "sig");
  CHECK(blocks[1].text == "Look.");
  CHECK(blocks[2].kind == block_kind::tool_call);
  CHECK(blocks[2].id == "t1");
  CHECK(blocks[2].name == "look");
  CHECK(blocks[2].text == "{\"a\":1}");
  CHECK(answer.result().reason == stop_reason::tool_use);
}

TEST_CASE("decoder: blocks of unknown kinds are skipped with their deltas") {
  const auto all =
      decode({message_start("m1"), block_start(0, R"({"type":"redacted_thinking","data":"x"})"),
              block_stop(0), block_start(1, R"({"type":"hologram"})"),
              delta(1, R"({"type":"text_delta","text":"no"})"), block_stop(1), text_start(2),
              text_delta("yes", 2), delta(2, R"({"type":"citations_delta","citation":{}})"),
              block_stop(2), message_delta(R"("end_turn")"), result()});
  CHECK(test::text_of(all.told) == "yes");
  CHECK(test::end_of(all.told));
}

TEST_CASE("decoder: a delta of another kind than its block's is skipped") {
  const auto all =
      decode({message_start("m1"), text_start(0), text_delta("a"),
              delta(0, R"({"type":"thinking_delta","thinking":"odd"})"),
              delta(0, R"({"type":"input_json_delta","partial_json":"odd"})"), text_delta("b"),
              block_stop(), message_delta(R"("end_turn")"), result()});
  CHECK(test::text_of(all.told) == "ab");
}

TEST_CASE("decoder: blocks out of order fail the turn, and no text gets into the wrong block") {
  const std::vector<std::vector<json>> disorders = {
      {message_start("m1"), text_start(0), text_delta("a"), text_delta("stray", 5)},
      {message_start("m1"), text_start(0), text_delta("a"), block_stop(0), text_start(2)},
      {message_start("m1"), text_start(0), text_delta("a"), block_stop(0), text_start(0)},
      {message_start("m1"), text_start(0), text_delta("a"), block_stop(0), text_start(1),
       text_delta("stray", 0)}};
  for (std::size_t i = 0; i < disorders.size(); ++i) {
    CAPTURE(i);
    const auto all = decode(disorders[i] + std::vector<json>{result()});
    CHECK(http_status(test::failure_of(all.told).value().kind) == 502);
    CHECK(test::text_of(all.told) == "a");
  }
}

TEST_CASE(
    "decoder: a change of the model within an answer, which comes in no event, ends nothing") {
  const auto fallback =
      assistant("m1", R"([{"type":"fallback","from":{"model":"a"},"to":{"model":"b"}}])");
  const auto all = decode({message_start("m1"), text_start(0), text_delta("a"), block_stop(0),
                           fallback, text_start(2), text_delta("b", 2), block_stop(2),
                           message_delta(R"("end_turn")"), result()});
  CHECK(test::text_of(all.told) == "ab");
  CHECK(test::grammar_problem(all.told) == "");
}

TEST_CASE("decoder: the end and the usage are kept as the API tells them, unless they differ") {
  const auto end_after = [](const std::string& reason) {
    const auto all =
        decode({message_start("m1", R"({"input_tokens":5,"service_tier":"batch"})"), text_start(),
                text_delta("x"), block_stop(),
                message_delta('"' + reason + '"', R"({"output_tokens":2})"), result()});
    return test::end_of(all.told).value();
  };
  const auto full = end_after("model_context_window_exceeded");
  CHECK(full.reason == stop_reason::max_tokens);
  CHECK(full.api["stop_reason"] == "model_context_window_exceeded");
  CHECK(full.usage.api["service_tier"] == "batch");
  CHECK(full.usage.api["output_tokens"] == 2);
  CHECK(end_after("tool_use").api.empty());  // without a call it is an end of the turn
}

TEST_CASE("decoder: what comes between the end of a message and the next one is in no message") {
  const std::vector<json> late = {text_start(1), text_delta("late", 1)};
  const auto all = decode(hello() + late + std::vector<json>{result()});
  CHECK(test::text_of(all.told) == "Hello");
  CHECK(test::grammar_problem(all.told) == "");
}

TEST_CASE("decoder: lines of agents within the turn are not the turn's") {
  auto foreign = text_delta("not mine");
  foreign["parent_tool_use_id"] = "toolu_1";
  auto stop = message_delta(R"("max_tokens")");
  stop["parent_tool_use_id"] = "toolu_1";
  auto lines = hello();
  lines.insert(lines.begin() + 3, {foreign, stop});
  const auto all = decode(lines + std::vector<json>{result()});
  CHECK(test::text_of(all.told) == "Hello");
  CHECK(test::end_of(all.told).value().reason == stop_reason::end_turn);
}

TEST_CASE("decoder: lines of unknown types and shapes mean nothing") {
  std::vector<json> lines = {line("{}"),
                             line(R"({"type":"system","subtype":"new"})"),
                             line(R"({"type":7})"),
                             line(R"({"type":"rate_limit_event"})"),
                             line(R"({"type":"stream_event"})"),
                             streamed("1"),
                             streamed("{}"),
                             streamed(R"({"type":"ping"})"),
                             streamed(R"({"type":"error"})"),
                             line("[]"),
                             line("null"),
                             line(R"({"type":"user","message":{}})"),
                             line(R"({"type":"assistant"})")};
  const auto all = decode(lines);
  CHECK(all.told.empty());
  const auto answered = decode(lines + hello() + lines + std::vector<json>{result()});
  CHECK(test::text_of(answered.told) == "Hello");
}

// ---- the API's call broke and the CLI made another ----------------------------------------------

TEST_CASE("decoder: after a broken attempt only what is new is told, each part once") {
  const std::vector<json> broken = {message_start("m1"), text_start(), text_delta("One t"),
                                    text_delta("wo th")};
  const std::vector<json> again = {message_start("m2"),
                                   text_start(),
                                   text_delta("One"),
                                   text_delta(" two three"),
                                   block_stop(),
                                   message_delta(R"("end_turn")"),
                                   result()};
  for (const bool stopped : {false, true}) {
    const auto end =
        stopped ? std::vector<json>{block_stop(), message_stop()} : std::vector<json>{};
    const auto all = decode(broken + end + std::vector<json>{api_retry("500", "null")} + again);
    CHECK(deltas_of(all.told) == std::vector<std::string>{"One t", "wo th", "ree"});
    CHECK(test::end_of(all.told).value().usage.output == 7);
    CHECK(test::end_of(all.told).value().usage.input == 11);
  }
}

TEST_CASE("decoder: no token of a broken attempt is counted") {
  const auto all = decode(
      {message_start("m1", R"({"input_tokens":9,"output_tokens":5,
                               "cache_read_input_tokens":300,"cache_creation_input_tokens":50,
                               "cache_creation":{"ephemeral_5m_input_tokens":50}})"),
       text_start(), text_delta("One"), message_start("m2", R"({"input_tokens":11})"), text_start(),
       text_delta("One"), block_stop(), message_delta(R"("end_turn")", "{}"), result()});
  const auto usage = test::end_of(all.told).value().usage;
  CHECK(usage.input == 11);
  CHECK(usage.output == 0);
  CHECK(usage.cache_read == 0);
  CHECK(usage.cache_write == 0);
  CHECK(usage.cache_write_5m == 0);
}

TEST_CASE("decoder: a whole message after a broken stream tells the rest") {
  const auto all = decode({message_start("m1"), text_start(), text_delta("One t"),
                           assistant("m2", dump(text_block("One two"))), result()});
  CHECK(deltas_of(all.told) == std::vector<std::string>{"One t", "wo"});
  CHECK(test::end_of(all.told).value().usage.output == 7);
}

TEST_CASE("decoder: a whole message that repeats what was streamed tells nothing") {
  auto lines = hello();
  lines.insert(lines.begin() + 4, assistant("m1", dump(text_block("Hello"))));
  const auto all = decode(lines + std::vector<json>{result()});
  CHECK(test::text_of(all.told) == "Hello");
}

TEST_CASE("decoder: whole messages in place of a stream are an answer, line by line") {
  const auto all = decode(
      {assistant("m1", R"([{"type":"thinking","thinking":"hm","signature":"sig"}])"),
       assistant("m1", R"([{"type":"text","text":"Hello"}])"),
       assistant("m1", R"([{"type":"tool_use","id":"t","name":"look","input":{"b":1,"a":2}}])"),
       result(R"(,"stop_reason":"tool_use")")});
  collector answer;
  for (const auto& what : all.told) answer.add(what);
  const auto& blocks = answer.result().blocks;
  REQUIRE(blocks.size() == 3);
  CHECK(blocks[0].signature == "sig");
  CHECK(blocks[1].text == "Hello");
  CHECK(blocks[2].text == R"({"b":1,"a":2})");
  CHECK(answer.result().usage.output == 7);
}

TEST_CASE(
    "decoder: where nothing has left, a broken attempt is forgotten and the next one counts") {
  const auto told_of = [](const std::vector<json>& lines) {
    const auto all = decode(lines, {});
    CHECK(test::grammar_problem(all.told) == "");
    claude_openai::collector gathered;
    for (const auto& what : all.told) gathered.add(what);
    std::string words;
    for (const auto& block : gathered.result().blocks) words += block.text + "|";
    return words;
  };
  const std::vector<json> broken = {message_start("m1"), text_start(), text_delta("One t"),
                                    text_delta("wo th")};
  const auto second = hello();
  CHECK(told_of(broken + second + std::vector<json>{result()}) == "Hello|");
  CHECK(told_of(broken + broken + second + std::vector<json>{result()}) == "Hello|");
  CHECK(told_of(broken + std::vector<json>{assistant("m2", dump(text_block("Quite another"))),
                                           result()}) == "Quite another|");
}

TEST_CASE("decoder: a second answer that differs from what was told is a failure, not a mixture") {
  const std::vector<json> broken = {message_start("m1"), text_start(), text_delta("One t"),
                                    text_delta("wo th")};
  const std::vector<std::vector<json>> seconds = {
      {message_start("m2"), text_start(), text_delta("Quite")},
      {message_start("m2"), text_start(), text_delta("One"), block_stop(),
       message_delta(R"("end_turn")")},
      {message_start("m2"), message_delta(R"("end_turn")")},
      {message_start("m2"), block_start(0, R"({"type":"thinking","thinking":""})")},
      {message_start("m2"), text_start(), text_delta("One"), block_stop(0), text_start(1)},
      {assistant("m2", dump(text_block("Quite another"))), result()},
      {assistant("m2", dump(text_block("One"))), result()}};
  for (std::size_t i = 0; i < seconds.size(); ++i) {
    CAPTURE(i);
    const auto all = decode(broken + seconds[i]);
    REQUIRE(all.finished);
    REQUIRE(test::failure_of(all.told));
    CHECK(http_status(test::failure_of(all.told)->kind) == 502);
    CHECK(test::text_of(all.told) == "One two th");
  }
}

TEST_CASE("decoder: what was not told yet may differ") {
  const auto all =
      decode({message_start("m1"), message_start("m2"), text_start(), text_delta("Quite"),
              block_stop(), message_delta(R"("end_turn")"), result()});
  CHECK(test::text_of(all.told) == "Quite");
  CHECK(test::end_of(all.told));
}

TEST_CASE("decoder: several blocks of a broken attempt are each matched with its twin") {
  const std::vector<json> first = {message_start("m1"), text_start(0), text_delta("one"),
                                   block_stop(0),       text_start(1), text_delta("tw", 1)};
  const auto all =
      decode(first + std::vector<json>{message_start("m2"), text_start(0), text_delta("one"),
                                       block_stop(0), text_start(1), text_delta("two", 1),
                                       block_stop(1), message_delta(R"("end_turn")"), result()});
  CHECK(deltas_of(all.told) == std::vector<std::string>{"one", "tw", "o"});
  CHECK(test::end_of(all.told));
}

TEST_CASE("decoder: however an attempt is broken and cut up, the text is told once") {
  CAPTURE(test::seed());
  test::generator random(15);
  const std::string whole = "One two three four, and so on.";
  for (int i = 0; i < 2'000; ++i) {
    std::vector<json> lines;
    const std::size_t attempts = random.between(1, 4);
    for (std::size_t a = 0; a < attempts; ++a) {
      const bool last = a + 1 == attempts;
      const auto reach = last ? whole.size() : random.below(whole.size() + 1);
      const auto id = "m" + std::to_string(a);
      if (last && a > 0 && random.chance(40)) {
        lines.push_back(assistant(id, dump(text_block(whole))));
        break;
      }
      lines.push_back(message_start(id));
      lines.push_back(text_start());
      for (std::size_t at = 0; at < reach;) {
        const auto size = std::min(random.between(1, 9), reach - at);
        lines.push_back(text_delta(whole.substr(at, size)));
        at += size;
      }
      if (last || random.chance(50)) lines.push_back(block_stop());
      if (last) lines.push_back(message_delta(R"("end_turn")"));
      if (!last && random.chance(50)) lines.push_back(message_stop());
    }
    lines.push_back(result());
    const auto all = decode(lines);
    REQUIRE(test::grammar_problem(all.told) == "");
    REQUIRE(test::text_of(all.told) == whole);
    REQUIRE(test::end_of(all.told).value().usage.output == 7);
  }
}

TEST_CASE("decoder: the messages of one turn add up, tokens and text, a line between") {
  const auto all = decode({message_start("m1"), text_start(), text_delta("Let me look."),
                           block_stop(), message_delta(R"("pause_turn")"), message_stop(),
                           message_start("m2"), text_start(), text_delta("Sunny."), block_stop(),
                           message_delta(R"("end_turn")"), message_stop(), result()});
  CHECK(test::text_of(all.told) == "Let me look.\n\nSunny.");
  const auto end = test::end_of(all.told).value();
  CHECK(end.reason == stop_reason::end_turn);
  CHECK(end.usage.input == 22);
  CHECK(end.usage.output == 14);
}

TEST_CASE("decoder: where the CLI would ask again by itself the answer ends with the API's") {
  for (const auto& each : std::map<std::string, std::string>{
           {"\n", "end_turn"}, {" ", "stop_sequence"}, {"I will look.", "tool_use"}}) {
    CAPTURE(each.first);
    const auto all = decode({message_start("m1"), text_start(), text_delta(each.first),
                             block_stop(), message_delta("\"" + each.second + "\""), message_stop(),
                             message_start("m2"), text_start(), text_delta("More."), block_stop(),
                             message_delta(R"("end_turn")"), message_stop(), result()});
    CHECK(test::text_of(all.told).find("More.") == std::string::npos);
    CHECK(test::end_of(all.told).value().usage.output == 7);
  }
}

TEST_CASE("decoder: a turn costs what the process has cost since the last one") {
  turn_decoder first(0.25);
  events out;
  for (const auto& one : hello() + std::vector<json>{result()}) first.decode(one, out);
  CHECK(test::end_of(out).value().usage.cost_usd == 0.25);
  CHECK(first.meter().cost() == 0.5);
  CHECK(turn_decoder(0.75).meter().cost() == 0.75);
  CHECK(turn_decoder().meter().cost() == 0.0);
}

TEST_CASE("decoder: a turn that was cut or failed leaves the cost as it was known") {
  for (const auto& lines :
       {hello(R"("max_tokens")"), std::vector<json>{api_retry("9999", "429")}}) {
    turn_decoder decoder(0.25);
    events out;
    for (const auto& one : lines) decoder.decode(one, out);
    REQUIRE(decoder.finished());
    CHECK(decoder.meter().cost() == 0.25);
  }
}

// ---- failures -----------------------------------------------------------------------------------

TEST_CASE("decoder: a failed result is the API's error, with its status and message") {
  const auto all = decode({failed_result("429", "API Error: Request rejected (429) · slow down")});
  const auto error = test::failure_of(all.told).value();
  CHECK(error.kind == error_kind::rate_limited);
  CHECK(error.message == "slow down");
  CHECK(all.told.size() == 1);
}

TEST_CASE("decoder: an error that the CLI says as an answer is never told as one") {
  auto synthetic = assistant("s1", dump(text_block("API Error: 529 Overloaded")));
  synthetic["message"]["model"] = "<synthetic>";
  synthetic["error"] = "server_error";
  const auto all = decode({synthetic, failed_result("529", "API Error: 529 Overloaded")});
  CHECK(test::text_of(all.told).empty());
  CHECK(all.told.size() == 1);
  CHECK(test::failure_of(all.told).value().kind == error_kind::overloaded);
}

TEST_CASE("decoder: a result of another subtype than success is a failure that names it") {
  for (const std::string subtype :
       {"error_during_execution", "error_max_structured_output_retries", "new_kind_of_error"}) {
    CAPTURE(subtype);
    const auto failed =
        line(R"({"type":"result","subtype":")" + std::string(subtype) + R"(","is_error":false})");
    auto lines = hello();
    lines.resize(4);
    const auto all = decode(lines + std::vector<json>{failed});
    const auto error = test::failure_of(all.told).value();
    CHECK(error.message.find(subtype) != std::string::npos);
    CHECK(http_status(error.kind) >= 500);
  }
}

TEST_CASE("decoder: a limit that is met before the model has said anything is a failure") {
  for (const std::string subtype : {"error_max_turns", "error_max_budget_usd"}) {
    CAPTURE(subtype);
    const auto all =
        decode({line(R"({"type":"result","is_error":true,"subtype":")" + subtype + "\"}")});
    CHECK(test::failure_of(all.told).value().message.find(subtype) != std::string::npos);
  }
}

TEST_CASE("decoder: a success of which the model said nothing is a failure") {
  const auto all = decode({result()});
  CHECK(http_status(test::failure_of(all.told).value().kind) == 502);
}

TEST_CASE("decoder: the CLI's own delay is the client's Retry-After, its last one counts") {
  const auto all = decode({api_retry("1000", "429"), api_retry("1124.688", "429"),
                           failed_result("429", "API Error: Request rejected (429) · slow")});
  CHECK(test::failure_of(all.told).value().retry_after == std::chrono::milliseconds(1124));
  CHECK_FALSE(all.cut);
}

TEST_CASE("decoder: a refusal that the CLI does not retry is one to wait a minute for") {
  for (const std::string status : {"429", "529"}) {
    const auto all = decode({failed_result(status, "API Error: Request rejected (429) · at five")});
    CHECK(test::failure_of(all.told).value().retry_after == std::chrono::minutes(1));
  }
  const auto other = decode({failed_result("500", "API Error: 500 broken")});
  CHECK_FALSE(test::failure_of(other.told).value().retry_after);
}

TEST_CASE("decoder: a retry within seconds is waited for, a later one is the client's to make") {
  CHECK_FALSE(decode({api_retry("5000", "429")}).finished);
  const auto all = decode({api_retry("5001", "429")});
  REQUIRE(all.finished);
  CHECK_FALSE(all.cut);  // the process is interrupted, and serves others
  const auto error = test::failure_of(all.told).value();
  CHECK(error.kind == error_kind::rate_limited);
  CHECK(error.retry_after == std::chrono::milliseconds(5001));
  CHECK_FALSE(error.message.empty());
  CHECK(test::failure_of(decode({api_retry("60000", "529")}).told).value().kind ==
        error_kind::overloaded);
}

TEST_CASE("decoder: a text ends at a stop text of the proxy's, and nothing that follows is told") {
  answer_shape shape;
  shape.cut_at = {"l\n"};
  auto lines = std::vector<json>{message_start("m1"), text_start(),      text_delta("Hel"),
                                 text_delta("l"),     text_delta("\no"), text_delta("more")};
  const auto all = decode(lines, shape);
  CHECK(all.cut);
  CHECK(all.text() == "Hel");
  CHECK(all.end().reason == stop_reason::stop_sequence);
  CHECK(all.end().stop_sequence == "l\n");
  CHECK(all.end().usage.input == 11);
  CHECK(all.end().usage.output > 0);
  const auto whole = decode({assistant("m1", dump(text_block("Hell\no"))), result()}, shape);
  CHECK(whole.text() == "Hel");
  CHECK(whole.cut);
  const auto uncut = decode(hello() + std::vector<json>{result()}, shape);
  CHECK(uncut.text() == "Hello");
  CHECK_FALSE(uncut.cut);
}

TEST_CASE("decoder: a text that is cut is charged as far as it was written, and a little more") {
  answer_shape shape;
  shape.cut_at = {"\n"};
  events told;
  turn_decoder decoder(0, shape);
  for (const auto& one :
       {message_start("m1", R"({"input_tokens":1000})"), text_start(), text_delta("Hello\n")}) {
    decoder.decode(one, told);
  }
  token_usage written;
  written.input = 1000;
  written.output = 2;
  const auto cost = estimate_cost("model-1", written);
  CHECK(decoder.meter().usage().charge_usd > cost);
  CHECK(decoder.meter().usage().charge_usd < 1.5 * cost);
}

TEST_CASE("decoder: a failure after some text keeps the text told and says the failure") {
  const auto all = decode({message_start("m1"), text_start(), text_delta("half"),
                           failed_result("529", "API Error: 529 Overloaded")});
  CHECK(test::text_of(all.told) == "half");
  CHECK(test::failure_of(all.told).value().kind == error_kind::overloaded);
}

// ---- whatever the lines say ---------------------------------------------------------------------

TEST_CASE("decoder: any lines in any order keep the grammar") {
  CAPTURE(test::seed());
  test::generator random(16);
  const std::vector<json> known = {
      message_start("m1"),
      message_start("m2"),
      message_start(""),
      text_start(0),
      text_start(1),
      block_start(0, R"({"type":"thinking","thinking":"early"})"),
      block_start(1, R"({"type":"tool_use","id":"t","name":"n","input":{}})"),
      block_start(0, R"({"type":"hologram"})"),
      text_delta("a"),
      text_delta("a", 1),
      text_delta("b"),
      text_delta(""),
      delta(0, R"({"type":"thinking_delta","thinking":"a"})"),
      delta(1, R"({"type":"input_json_delta","partial_json":"{"})"),
      delta(0, R"({"type":"signature_delta","signature":"s"})"),
      block_stop(0),
      block_stop(1),
      message_delta(R"("end_turn")"),
      message_delta(R"("tool_use")"),
      message_delta("null"),
      message_stop(),
      assistant("m1", dump(text_block("a"))),
      assistant("m2", dump(text_block("ab"))),
      assistant("", dump(text_block("a"))),
      assistant("m3", R"([{"type":"thinking","thinking":"a"},{"type":"text","text":"b"}])"),
      api_retry("10", "429")};
  const std::vector<json> last = {result(), failed_result("429", "x"),
                                  message_delta(R"("refusal")"), message_delta(R"("max_tokens")"),
                                  api_retry("9999", "429")};
  for (int i = 0; i < 20'000; ++i) {
    turn_decoder decoder;
    events out;
    std::string said;
    for (std::size_t n = random.below(14); n > 0; --n) {
      const auto one = random.pick(known);
      said += dump(one) + "\n";
      decoder.decode(one, out);
    }
    if (random.chance(50)) {
      const auto one = random.pick(last);
      said += dump(one) + "\n";
      decoder.decode(one, out);
    }
    if (!decoder.finished()) decoder.fail(api_error(error_kind::bad_gateway, "gone"), out);
    CAPTURE(said);
    REQUIRE(decoder.finished());
    REQUIRE(test::grammar_problem(out) == "");
  }
}

TEST_CASE("decoder: JSON of the model's that is too deep to parse fails the turn, told or not") {
  const auto deep = [](std::size_t depth) {
    return "{\"a\":" + std::string(depth - 1, '[') + std::string(depth - 1, ']') + "}";
  };
  answer_shape shape;
  shape.names = tool_names({{"look", {}, json::object()}}, "");
  const auto turn_with = [&](const std::string& input) {
    return decode(std::vector<json>{message_start("m1")} + call_lines(0, "t", "look", {input}) +
                      std::vector<json>{message_delta(R"("tool_use")")},
                  shape);
  };
  CHECK(turn_with(deep(max_json_depth)).end().reason == stop_reason::tool_use);
  for (const std::size_t depth : {max_json_depth + 1, std::size_t(100'000)}) {
    const auto all = turn_with(deep(depth));
    CHECK(all.failure().kind == error_kind::bad_gateway);
    CHECK(all.failure().message.find("nested too deeply") != std::string::npos);
    CHECK(all.cut);  // its process must not go on with such a call
  }
  const auto followed =
      decode(std::vector<json>{message_start("m1")} + call_lines(0, "t", "look", {deep(200)}) +
                 std::vector<json>{text_start(1), text_delta("x", 1)},
             shape);
  CHECK(followed.failure().kind == error_kind::bad_gateway);
}

namespace {

const std::string price_usage = R"({"input_tokens":1000,"output_tokens":1})";
constexpr double of_input = 0.015;  // a model that nobody knows: 15 and 75 USD for a million

/// What a turn is charged after these lines.
double charge_of(turn_decoder& decoder, const std::vector<json>& lines) {
  events ignored;
  for (const auto& one : lines) decoder.decode(one, ignored);
  return decoder.meter().usage().charge_usd;
}

answer_shape look_shape() {
  answer_shape shape;
  shape.names = tool_names({{"look", {}, json::object()}}, "");
  return shape;
}

std::vector<json> tool_call(const std::string& id) {
  return std::vector<json>{message_start(id, price_usage)} +
         call_lines(0, "t" + id, "look", {"{}"}) +
         std::vector<json>{message_delta(R"("tool_use")", R"({"output_tokens":100})")};
}

}  // namespace

TEST_CASE("charge: what the CLI tells, less what the process had cost before") {
  turn_decoder decoder(0.2);
  CHECK(charge_of(decoder, hello() + std::vector<json>{result()}) == doctest::Approx(0.3));
  CHECK(decoder.meter().charged_ahead() == 0);
}

TEST_CASE("charge: of a turn that is cut the list price, whatever ends it") {
  for (const char* reason : {R"("max_tokens")", R"("refusal")"}) {
    turn_decoder decoder;
    const auto charge =
        charge_of(decoder, {message_start("m", price_usage), text_start(), text_delta("x"),
                            block_stop(), message_delta(reason, R"({"output_tokens":100})")});
    CHECK(decoder.finished());
    CHECK(charge == doctest::Approx(of_input + 0.0075));
  }
}

TEST_CASE("charge: what the CLI begins by itself after a cut costs, too") {
  turn_decoder decoder;
  const auto charge = charge_of(
      decoder, {message_start("m", price_usage), text_start(), text_delta("x"), block_stop(),
                message_delta(R"("max_tokens")", R"({"output_tokens":100})"),
                message_start("unasked", price_usage), text_start(), text_delta("y")});
  CHECK(decoder.was_cut());
  CHECK(charge == doctest::Approx(2 * of_input + 0.0075 + 0.000075));
  CHECK(decoder.meter().usage().output == 100);
}

TEST_CASE("charge: of an answer under way its input, and of its output at least what has come") {
  turn_decoder decoder;
  const auto begun = charge_of(decoder, {message_start("m", price_usage), text_start()});
  CHECK(begun == doctest::Approx(of_input + 0.000075));
  const auto later = charge_of(decoder, {text_delta(std::string(400, 'x'))});
  CHECK(later >= of_input + 100 * 75e-6);
  CHECK(later <= of_input + 134 * 75e-6);
  CHECK(decoder.meter().usage().output >= 100);
  events failed;
  decoder.fail(api_error(error_kind::bad_gateway, "gone"), failed);
  CHECK(decoder.meter().usage().charge_usd == later);
}

TEST_CASE("charge: a tool call is charged ahead, and not again when the CLI tells its cost") {
  turn_decoder first(0.5, look_shape());
  const double ahead = charge_of(first, tool_call("m1"));
  CHECK(ahead == doctest::Approx(of_input + 0.0075));
  CHECK_FALSE(first.meter().usage().cost_usd);
  CHECK(first.meter().charged_ahead() == ahead);
  turn_decoder second(first.meter().cost(), look_shape(), first.meter().charged_ahead());
  const double more = charge_of(second, tool_call("m2"));
  CHECK(more == doctest::Approx(ahead));
  turn_decoder third(second.meter().cost(), look_shape(), second.meter().charged_ahead());
  json told = result();
  told["total_cost_usd"] = 0.5 + 3 * ahead;
  const double rest = charge_of(third, hello() + std::vector<json>{told});
  CHECK(third.meter().usage().cost_usd == doctest::Approx(3 * ahead));  // as ever: of all three
  CHECK(ahead + more + rest == doctest::Approx(3 * ahead));
  CHECK(third.meter().charged_ahead() == 0);
}

TEST_CASE("charge: an attempt that broke counts, in the CLI's cost or not, and not twice") {
  const std::vector<json> attempts =
      std::vector<json>{message_start("m1", price_usage),
                        text_start(),
                        message_start("m2", price_usage),
                        text_start(),
                        text_delta("x"),
                        block_stop(),
                        message_delta(R"("end_turn")", R"({"output_tokens":100})")};
  const double once = of_input + 0.0075;
  const double broken = of_input + 0.000075;
  for (const double told : {once, once + broken}) {
    turn_decoder decoder;
    json end = result();
    end["total_cost_usd"] = told;
    CHECK(charge_of(decoder, attempts + std::vector<json>{end}) == doctest::Approx(once + broken));
  }
}

TEST_CASE("charge: a turn that fails after it has begun is charged for what has come") {
  turn_decoder decoder;
  json end = failed_result("529", "API Error: Overloaded");
  end["total_cost_usd"] = 0;
  const auto charge = charge_of(decoder, {message_start("m1", price_usage), text_start(), end});
  CHECK(decoder.finished());
  CHECK(charge == doctest::Approx(of_input + 0.000075));
  turn_decoder refused;
  end = failed_result("400", "API Error: 400");
  CHECK(charge_of(refused, {end}) == 0);
}
