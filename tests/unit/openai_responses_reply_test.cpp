// [12] openai_responses: answers, whole and as a stream of events.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/dialects.hpp"

using namespace claude_openai;
using test::script;
using tree = test::json;  // compares without regard to the order of members

namespace {

/// What answers a request with these fields, whose custom tools are `patch` and no other.
std::unique_ptr<reply> make_writer(const std::string& fields = "",
                                   std::function<void(const claude_openai::json&)> keep = {}) {
  const auto body = R"({"input":"Hi","metadata":{"a":"b"},
      "tools":[{"type":"function","name":"look"},{"type":"custom","name":"patch"}])" +
                    (fields.empty() ? "" : "," + fields) + "}";
  return openai_responses::parse(parse_body(body), {"ID", 1700000000, "req_1", std::move(keep)})
      .reply;
}

const std::string summary = R"("reasoning":{"summary":"auto"})";
const std::string sealing = R"("include":["reasoning.encrypted_content"])";

std::vector<test::named_event> events_of(const test::events& told, const std::string& fields = "") {
  std::string problem;
  auto all = test::named_events(test::written(*make_writer(fields), told), problem);
  CHECK_MESSAGE(problem.empty(), problem);
  return all;
}

/// The events' names without `response.`
std::string names_of(const test::events& told, const std::string& fields = "") {
  auto names = " " + test::names_of(events_of(told, fields));
  for (auto at = names.find(" response."); at != std::string::npos;) {
    names.erase(at + 1, 9);
    at = names.find(" response.");
  }
  return names.substr(1);
}

/// The response at the end of the stream; checks the rules of the stream.
tree streamed(const test::events& told, const std::string& fields = "") {
  const test::responses_stream_reader got(test::written(*make_writer(fields), told));
  CHECK_MESSAGE(got.problem.empty(), got.problem);
  return got.response;
}

tree whole(const test::events& told, const std::string& fields = "") {
  return test::rendered(*make_writer(fields), told);
}

/// The data of the first event of that name, without its type and place in the stream.
tree data_of(const std::vector<test::named_event>& all, const std::string& name) {
  for (const auto& one : all) {
    if (one.name != "response." + name) continue;
    auto data = one.data;
    data.erase("type");
    data.erase("sequence_number");
    return data;
  }
  return {};
}

const std::string beginning = "created in_progress ";

}  // namespace

TEST_CASE("responses stream: a text is an item with one part") {
  CHECK(names_of(script().text({"a", "b"}).stop()) ==
        beginning +
            "output_item.added content_part.added output_text.delta output_text.delta "
            "output_text.done content_part.done output_item.done completed");
  const auto all = events_of(script().text({"Hel", "lo"}).stop());
  const tree part{{"type", "output_text"},
                  {"text", ""},
                  {"annotations", tree::array()},
                  {"logprobs", tree::array()}};
  tree done_part = part;
  done_part["text"] = "Hello";
  const tree place{{"item_id", "msg_ID_0"}, {"output_index", 0}, {"content_index", 0}};
  const auto at_place = [&](tree more) {
    more.update(place);
    return more;
  };
  tree item{{"id", "msg_ID_0"},
            {"type", "message"},
            {"status", "in_progress"},
            {"role", "assistant"},
            {"content", tree::array()}};
  CHECK(data_of(all, "output_item.added") == tree{{"output_index", 0}, {"item", item}});
  CHECK(data_of(all, "content_part.added") == at_place({{"part", part}}));
  CHECK(data_of(all, "output_text.delta") ==
        at_place({{"delta", "Hel"}, {"logprobs", tree::array()}}));
  CHECK(data_of(all, "output_text.done") ==
        at_place({{"text", "Hello"}, {"logprobs", tree::array()}}));
  CHECK(data_of(all, "content_part.done") == at_place({{"part", done_part}}));
  item["status"] = "completed";
  item["content"] = tree::array({done_part});
  CHECK(data_of(all, "output_item.done") == tree{{"output_index", 0}, {"item", item}});
  streamed(script().text({"Hel", "lo"}).stop());  // checks all deltas together, and their places
}

TEST_CASE("responses stream: a function call is an item with arguments") {
  const auto told = script().call("c1", "look", {R"({"a)", R"(":1})"}).stop(stop_reason::tool_use);
  CHECK(names_of(told) == beginning +
                              "output_item.added function_call_arguments.delta "
                              "function_call_arguments.delta function_call_arguments.done "
                              "output_item.done completed");
  const auto all = events_of(told);
  tree item{{"id", "fc_ID_0"}, {"type", "function_call"}, {"status", "in_progress"},
            {"call_id", "c1"}, {"name", "look"},          {"arguments", ""}};
  CHECK(data_of(all, "output_item.added") == tree{{"output_index", 0}, {"item", item}});
  CHECK(data_of(all, "function_call_arguments.delta") ==
        tree{{"item_id", "fc_ID_0"}, {"output_index", 0}, {"delta", R"({"a)"}});
  CHECK(data_of(all, "function_call_arguments.done") == tree{{"item_id", "fc_ID_0"},
                                                             {"output_index", 0},
                                                             {"name", "look"},
                                                             {"arguments", R"({"a":1})"}});
  item["status"] = "completed";
  item["arguments"] = R"({"a":1})";
  CHECK(data_of(all, "output_item.done") == tree{{"output_index", 0}, {"item", item}});
}

TEST_CASE("responses stream: a custom tool's input is plain text, told when it is whole") {
  const auto told = script()
                        .call("c1", "patch", {R"({"input":"*** \"x)", R"(\"\n"})"})
                        .stop(stop_reason::tool_use);
  CHECK(names_of(told) == beginning +
                              "output_item.added custom_tool_call_input.delta "
                              "custom_tool_call_input.done output_item.done completed");
  const auto all = events_of(told);
  const tree item{{"id", "ctc_ID_0"},      {"type", "custom_tool_call"},
                  {"status", "completed"}, {"call_id", "c1"},
                  {"name", "patch"},       {"input", "*** \"x\"\n"}};
  CHECK(data_of(all, "output_item.done")["item"] == item);
  CHECK(data_of(all, "custom_tool_call_input.done") ==
        tree{{"item_id", "ctc_ID_0"}, {"output_index", 0}, {"input", "*** \"x\"\n"}});
  CHECK(data_of(all, "custom_tool_call_input.delta")["delta"] == "*** \"x\"\n");
}

TEST_CASE("responses: a call of a namespace's tool has the tool's name and the namespace's") {
  const std::string tools = R"("tools":[{"type":"namespace","name":"git","tools":[
      {"type":"function","name":"log"},{"type":"custom","name":"apply"}]}])";
  const auto told = script()
                        .call("c1", "git.log", {"{}"})
                        .call("c2", "git.apply", {R"({"input":"x"})"})
                        .stop(stop_reason::tool_use);
  const auto writer = [&] {
    return openai_responses::parse(parse_body(R"({"input":"Hi",)" + tools + "}"), {"ID", 1}).reply;
  };
  const test::responses_stream_reader got(test::written(*writer(), told));
  CHECK_MESSAGE(got.problem.empty(), got.problem);
  CHECK(test::rendered(*writer(), told) == got.response);
  CHECK(got.response["output"] == tree{{{"id", "fc_ID_0"},
                                        {"type", "function_call"},
                                        {"status", "completed"},
                                        {"call_id", "c1"},
                                        {"namespace", "git"},
                                        {"name", "log"},
                                        {"arguments", "{}"}},
                                       {{"id", "ctc_ID_1"},
                                        {"type", "custom_tool_call"},
                                        {"status", "completed"},
                                        {"call_id", "c2"},
                                        {"namespace", "git"},
                                        {"name", "apply"},
                                        {"input", "x"}}});
  std::string problem;
  const auto all = test::named_events(test::written(*writer(), told), problem);
  CHECK(data_of(all, "function_call_arguments.done")["name"] == "log");
}

TEST_CASE("responses stream: thoughts are summed up for who asks for it") {
  const auto told = script().thinking({"let ", "me"}, "sig").stop();
  CHECK(names_of(told, summary) ==
        beginning +
            "output_item.added reasoning_summary_part.added reasoning_summary_text.delta "
            "reasoning_summary_text.delta reasoning_summary_text.done "
            "reasoning_summary_part.done output_item.done completed");
  const auto all = events_of(told, summary);
  const tree place{{"item_id", "rs_ID_0"}, {"output_index", 0}, {"summary_index", 0}};
  const auto at_place = [&](tree more) {
    more.update(place);
    return more;
  };
  const tree part{{"type", "summary_text"}, {"text", "let me"}};
  CHECK(data_of(all, "output_item.added")["item"] ==
        tree{{"id", "rs_ID_0"}, {"type", "reasoning"}, {"summary", tree::array()}});
  CHECK(data_of(all, "reasoning_summary_part.added") ==
        at_place({{"part", {{"type", "summary_text"}, {"text", ""}}}}));
  CHECK(data_of(all, "reasoning_summary_text.delta") == at_place({{"delta", "let "}}));
  CHECK(data_of(all, "reasoning_summary_text.done") == at_place({{"text", "let me"}}));
  CHECK(data_of(all, "reasoning_summary_part.done") == at_place({{"part", part}}));
  CHECK(data_of(all, "output_item.done")["item"] ==
        tree{{"id", "rs_ID_0"}, {"type", "reasoning"}, {"summary", {part}}});
  CHECK(names_of(told, R"("reasoning":{"generate_summary":"concise"})") == names_of(told, summary));
}

TEST_CASE("responses stream: thoughts that nobody asked for are empty items") {
  const auto told = script().thinking({"let ", "me"}, "sig").stop();
  CHECK(names_of(told) == beginning + "output_item.added output_item.done completed");
  CHECK(data_of(events_of(told), "output_item.done")["item"] ==
        tree{{"id", "rs_ID_0"}, {"type", "reasoning"}, {"summary", tree::array()}});
}

TEST_CASE("responses stream: what the agent's tools did is shown to who asked for that alone") {
  const auto told = script().block(block_kind::activity, {"Bash ", "ls"}).stop();
  CHECK(streamed(told)["output"][0]["summary"][0]["text"] == "Bash ls");
  CHECK(streamed(told)["output"] == streamed(told, summary)["output"]);
}

TEST_CASE("responses: thoughts are sealed for who includes them, and come back as they were") {
  const auto told = script()
                        .thinking({"let ", "me"}, "sig")
                        .block(block_kind::redacted_thinking, {"cipher"})
                        .thinking({"unsigned"}, "")
                        .text({"a"})
                        .stop();
  const auto added = data_of(events_of(told, sealing), "output_item.added");
  CHECK_FALSE(added["item"].contains("encrypted_content"));
  for (const auto& response : {streamed(told, sealing), whole(told, sealing)}) {
    const auto& output = response["output"];
    REQUIRE(output.size() == 4);
    CHECK_FALSE(output[2].contains("encrypted_content"));
    CHECK(output[0]["summary"] == tree::array());
    auto items = output;
    items.push_back({{"role", "user"}, {"content", "go on"}});
    const auto again = openai_responses::parse(parse_body(tree{{"input", items}}.dump()), {});
    CHECK(test::outline(again.turns[0]) == "{} user: <" + std::string(opening_prompt) +
                                               "> assistant: thought(let me,sig,) "
                                               "thought(,,cipher) <a> user: <go on>");
  }
  const auto output = whole(told)["output"];
  for (const auto& item : output) CHECK_FALSE(item.contains("encrypted_content"));
}

TEST_CASE("responses stream: the response is told twice at the start, in progress and empty") {
  const auto all = events_of(script().stop());
  REQUIRE(all.size() == 3);
  const auto& first = all[0].data["response"];
  CHECK(all[1].data["response"] == first);
  CHECK(first["id"] == "resp_ID");
  CHECK(first["object"] == "response");
  CHECK(first["created_at"] == 1700000000);
  CHECK(first["status"] == "in_progress");
  CHECK(first["model"] == "claude-x");
  CHECK(first["output"] == tree::array());
  CHECK(first["error"].is_null());
  CHECK(first["incomplete_details"].is_null());
  CHECK(first["usage"].is_null());
  CHECK(first["metadata"] == tree{{"a", "b"}});
  CHECK(first["background"] == false);
}

TEST_CASE("responses: the stream's last response is the whole one, item by item") {
  script told;
  told.thinking({"let ", "me"}, "sig");
  told.text({"Hello"});
  told.block(block_kind::redacted_thinking, {"cipher"});
  told.call("c1", "look", {"{}"});
  told.call("c2", "patch", {R"({"input":"x"})"});
  told.text({});
  for (const auto& fields : {std::string(), summary, sealing, summary + "," + sealing}) {
    CAPTURE(fields);
    for (const auto reason : {stop_reason::end_turn, stop_reason::tool_use, stop_reason::refusal,
                              stop_reason::max_tokens, stop_reason::turn_limit}) {
      CHECK(streamed(told.stop(reason), fields) == whole(told.stop(reason), fields));
    }
  }
  std::vector<std::string> ids;
  const auto output = whole(told.stop())["output"];
  for (const auto& item : output) ids.push_back(item["id"]);
  CHECK(ids == std::vector<std::string>{"rs_ID_0", "msg_ID_1", "rs_ID_2", "fc_ID_3", "ctc_ID_4",
                                        "msg_ID_5"});
}

TEST_CASE("responses: an answer that was cut is incomplete, and tells why") {
  struct row {
    stop_reason reason;
    const char* ending;
    const char* why;
  };
  const std::vector<row> rows = {{stop_reason::end_turn, "completed", ""},
                                 {stop_reason::tool_use, "completed", ""},
                                 {stop_reason::stop_sequence, "completed", ""},
                                 {stop_reason::max_tokens, "incomplete", "max_output_tokens"},
                                 {stop_reason::turn_limit, "incomplete", "max_output_tokens"},
                                 {stop_reason::refusal, "incomplete", "content_filter"}};
  for (const auto& [reason, ending, why] : rows) {
    const auto& tried = why;
    CAPTURE(tried);
    const auto told = script().text({"a"}).stop(reason);
    const test::responses_stream_reader got(test::written(*make_writer(), told));
    CHECK(got.ending == std::string("response.") + ending);
    for (const auto& response : {got.response, whole(told)}) {
      CHECK(response["status"] == ending);
      CHECK(response["error"].is_null());
      const tree details = *why == '\0' ? tree() : tree{{"reason", why}};
      CHECK(response["incomplete_details"] == details);
    }
  }
}

TEST_CASE("responses: the item within which an answer was cut is incomplete, no other") {
  const auto statuses = [](const tree& response) {
    std::string all;
    for (const auto& item : response["output"]) all += item.value("status", "none") + " ";
    return all;
  };
  const auto both = [&](const test::events& told) {
    CHECK(streamed(told) == whole(told));
    return statuses(whole(told));
  };
  for (const auto reason : {stop_reason::max_tokens, stop_reason::refusal}) {
    CHECK(both(script().text({"a"}).text({"b"}).stop(reason)) == "completed incomplete ");
    CHECK(both(script().text({"a"}).call("c", "look", {R"({"a":)"}).stop(reason)) ==
          "completed incomplete ");
    CHECK(both(script().call("c", "patch", {R"({"input":"*)"}).stop(reason)) == "incomplete ");
    CHECK(both(script().call("c", "look", {R"({"a":1})"}).stop(reason)) == "completed ");
    CHECK(both(script().text({"a"}).thinking({"hm"}, "sig").stop(reason)) == "completed none ");
    CHECK(both(script().stop(reason)).empty());
  }
  CHECK(both(script().text({"a"}).stop(stop_reason::turn_limit)) == "completed ");
}

TEST_CASE("responses stream: what a cut call lacks is never told as done") {
  const auto cut = [](const std::string& name, const std::string& input) {
    return names_of(script().call("c", name, {input}).stop(stop_reason::max_tokens));
  };
  CHECK(cut("look", R"({"a":)") ==
        beginning + "output_item.added function_call_arguments.delta output_item.done incomplete");
  CHECK(cut("patch", R"({"input":"*)") ==
        beginning + "output_item.added output_item.done incomplete");
  CHECK(names_of(script().text({"a"}).stop(stop_reason::max_tokens)) ==
        beginning +
            "output_item.added content_part.added output_text.delta output_text.done "
            "content_part.done output_item.done incomplete");
}

TEST_CASE("responses: usage has OpenAI's names, the cache within the input") {
  auto told = script().text({"a"}).stop();
  const tree expected{
      {"input_tokens", 3211},
      {"input_tokens_details", {{"cached_tokens", 200}, {"cache_write_tokens", 3000}}},
      {"output_tokens", 70},
      {"output_tokens_details", {{"reasoning_tokens", 5}}},
      {"total_tokens", 3281}};
  CHECK(whole(told)["usage"] == expected);
  CHECK(streamed(told)["usage"] == expected);
  std::get<turn_stopped>(told.back()).usage.cost_usd = 0.25;
  CHECK(whole(told)["usage"]["cost"] == 0.25);
}

TEST_CASE("responses stream: a failure is told with what was finished before it") {
  api_error failure(error_kind::rate_limited, "slow down");
  const auto told = script().text({"a"}).text({"b"}).fail(failure);
  const auto response = streamed(told);
  CHECK(response["status"] == "failed");
  CHECK(response["error"] == tree{{"code", "rate_limit_exceeded"}, {"message", "slow down"}});
  CHECK(response["output"].size() == 2);
  CHECK(response["usage"].is_null());
  CHECK(names_of(told).substr(names_of(told).rfind(' ')) == " failed");
  failure.code = "own_code";
  CHECK(streamed(script().fail(failure))["error"]["code"] == "own_code");
  CHECK(streamed(script().fail(api_error(error_kind::invalid_request, "no")))["error"]["code"] ==
        "invalid_request_error");
}

TEST_CASE("responses stream: a failure may come before all else, or within an item") {
  const api_error failure(error_kind::bad_gateway, "gone");
  const auto first = streamed({turn_failed{failure}});
  CHECK(first["status"] == "failed");
  CHECK(first["output"] == tree::array());
  auto told = script().text({"a"}).so_far();
  told.emplace_back(block_started{1, block_kind::text, {}, {}});
  told.emplace_back(block_delta{1, "half"});
  told.emplace_back(turn_failed{failure});
  const auto within = streamed(told);
  CHECK(within["output"].size() == 1);
  CHECK(within["output"][0]["content"][0]["text"] == "a");
}

TEST_CASE("responses stream: an answer that was cancelled says so") {
  api_error failure(error_kind::invalid_request, "the answer was cancelled");
  failure.code = "cancelled";
  const auto response = streamed(script().text({"a"}).fail(failure));
  CHECK(response["status"] == "cancelled");
  CHECK(response["output"].size() == 1);
}

TEST_CASE("responses: the whole response is kept once, as the client was told it") {
  std::vector<tree> kept;
  const auto keep = [&](const claude_openai::json& response) {
    kept.push_back(tree::parse(response.dump()));
  };
  const auto told = script().text({"a"}).stop();
  test::written(*make_writer("", keep), told);
  REQUIRE(kept.size() == 1);
  CHECK(kept[0] == streamed(told));
  const auto answer = test::rendered(*make_writer("", keep), told);
  REQUIRE(kept.size() == 2);
  CHECK(kept[1] == kept[0]);
  CHECK(kept[1] == answer);
  const auto failed = script().fail(api_error(error_kind::bad_gateway, "gone"));
  test::written(*make_writer("", keep), failed);
  REQUIRE(kept.size() == 3);
  CHECK(kept[2] == streamed(failed));
}

TEST_CASE("responses stream: silence is broken by a comment, which changes nothing") {
  const auto told = script().text({"a", "b"}).stop();
  const auto writer = make_writer();
  std::string bytes;
  for (const auto& what : told) {
    writer->write_keep_alive(bytes);
    writer->write(0, what, bytes);
  }
  CHECK(bytes.find(": keep-alive\n\n") == 0);
  const test::responses_stream_reader got(bytes);
  CHECK_MESSAGE(got.problem.empty(), got.problem);
  CHECK(got.response == whole(told));
}
