// [09] openai_chat: requests, from JSON to the neutral form.
#include <algorithm>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;
using test::error_of;
using strings = std::vector<std::string>;

namespace {

turn_request parse_text(const std::string& body) {
  return openai_chat::parse(parse_body(body), {"id", 1}).turn;
}

/// A request of one user message and these further fields.
std::string with_fields(const std::string& fields) {
  return R"({"messages":[{"role":"user","content":"Hi"}])" + (fields.empty() ? "" : "," + fields) +
         "}";
}

std::string with_messages(const std::string& messages) {
  return R"({"messages":)" + messages + "}";
}

/// `system / user: a | b / assistant: c`, so that a whole request reads at a glance.
std::string outline(const turn_request& request) {
  std::string all = "{" + request.system + "}";
  for (const auto& said : request.messages) {
    all += said.author == role::user ? " user:" : " assistant:";
    for (const auto& part : said.parts) {
      std::visit(overloaded{
                     [&](const text_part& p) { all += " <" + p.text + ">"; },
                     [&](const tool_call_part& p) {
                       all += " call(" + p.id + "," + p.name + "," + dump(p.input) + ")";
                     },
                     [&](const tool_result_part& p) {
                       all += " result(" + p.call_id + "," + p.text + ")";
                     },
                 },
                 part);
    }
  }
  return all;
}

std::string outline_of(const std::string& messages) {
  return outline(parse_text(with_messages(messages)));
}

/// The `param` of the 400 that a body gets.
std::string param_of(const std::string& body) {
  const auto error = error_of([&] { parse_text(body); });
  CHECK(error.kind == error_kind::invalid_request);
  CHECK_FALSE(error.message.empty());
  return error.param;
}

strings ignored_of(const std::string& fields) {
  return parse_text(with_fields(fields)).ignored_params;
}

const std::string go_on = " user: <" + std::string(continue_prompt) + ">";

}  // namespace

TEST_CASE("chat request: the smallest one has defaults for all the rest") {
  const auto request = parse_text(with_fields(""));
  CHECK(request.model.empty());
  CHECK(request.system.empty());
  CHECK_FALSE(request.stream);
  CHECK(request.ignored_params.empty());
  CHECK(outline(request) == "{} user: <Hi>");
}

TEST_CASE("chat request: content is a string, text parts, null or absent, in every role") {
  CHECK(outline_of(R"([{"role":"user","content":[{"type":"text","text":"a"},
                                                 {"type":"text","text":"b"}]}])") ==
        "{} user: <a> <b>");
  CHECK(outline_of(R"([{"role":"system","content":[{"type":"text","text":"s"}]},
                       {"role":"user","content":"a"}])") == "{s} user: <a>");
  for (const std::string nothing : {R"("content":null)", R"("content":"")", R"("content":[])",
                                    R"("x":1)", R"("content":[{"type":"text","text":""}])"}) {
    const std::string field = nothing;
    CAPTURE(field);
    CHECK(outline_of(R"([{"role":"user","content":"a"},{"role":"assistant",)" + field +
                     R"(},{"role":"user","content":"b"}])") == "{} user: <a> <b>");
    CHECK(outline_of(R"([{"role":"user",)" + field + R"(},{"role":"user","content":"b"}])") ==
          "{} user: <b>");
    CHECK(outline_of(R"([{"role":"system",)" + field + R"(},{"role":"user","content":"b"}])") ==
          "{} user: <b>");
    CHECK(outline_of(R"([{"role":"tool","tool_call_id":"1",)" + field + "}]") ==
          "{} user: result(1,)");
  }
}

TEST_CASE("chat request: system and developer messages are joined in order, wherever they are") {
  CHECK(outline_of(R"([{"role":"system","content":"one"},
                       {"role":"user","content":"a"},
                       {"role":"developer","content":[{"type":"text","text":"two"},
                                                      {"type":"text","text":"three"}]},
                       {"role":"assistant","content":"b"},
                       {"role":"system","content":""},
                       {"role":"user","content":"c"},
                       {"role":"system","content":"four"}])") ==
        "{one\ntwo\nthree\nfour} user: <a> assistant: <b> user: <c>");
}

TEST_CASE("chat request: a conversation of instructions only is answered") {
  CHECK(outline_of(R"([{"role":"system","content":"Say hi."}])") == "{Say hi.}" + go_on);
}

TEST_CASE("chat request: history keeps its roles, order and text, bytes and all") {
  CHECK(outline_of(R"([{"role":"user","content":"1"},{"role":"assistant","content":"2"},
                       {"role":"user","content":"3"},{"role":"assistant","content":"4"},
                       {"role":"user","content":"é\u0000\n\ud83d\ude00"}])") ==
        std::string("{} user: <1> assistant: <2> user: <3> assistant: <4> user: <é") + '\0' +
            "\n😀>");
}

TEST_CASE("chat request: an assistant's refusal is text that it said") {
  CHECK(outline_of(R"([{"role":"user","content":"a"},
                       {"role":"assistant","content":[{"type":"refusal","refusal":"No."}]},
                       {"role":"user","content":"b"}])") ==
        "{} user: <a> assistant: <No.> user: <b>");
}

TEST_CASE("chat request: where the assistant speaks last, the user asks to go on") {
  CHECK(outline_of(R"([{"role":"user","content":"a"},{"role":"assistant","content":"b"}])") ==
        "{} user: <a> assistant: <b>" + go_on);
}

TEST_CASE("chat request: tool calls and tool results are parsed") {
  CHECK(outline_of(R"([{"role":"user","content":"Weather?"},
      {"role":"assistant","content":"Let me look.","tool_calls":[
         {"id":"c1","type":"function","function":{"name":"look","arguments":"{\"b\":1,\"a\":[]}"}},
         {"id":"c2","type":"function","function":{"name":"now","arguments":""}}]},
      {"role":"tool","tool_call_id":"c1","content":"sunny"},
      {"role":"tool","tool_call_id":"c2","content":[{"type":"text","text":"12"},
                                                    {"type":"text","text":"noon"}]},
      {"role":"user","content":"So?"}])") ==
        R"({} user: <Weather?> assistant: <Let me look.> call(c1,look,{"b":1,"a":[]}))"
        " call(c2,now,{}) user: result(c1,sunny) result(c2,12\nnoon) <So?>");
}

TEST_CASE("chat request: no tool calls, or null for them, is no tool call") {
  for (const std::string calls : {"[]", "null"}) {
    CHECK(outline_of(R"([{"role":"user","content":"a"},{"role":"assistant","content":"b",)"
                     R"("tool_calls":)" +
                     std::string(calls) + R"(},{"role":"user","content":"c"}])") ==
          "{} user: <a> assistant: <b> user: <c>");
  }
}

TEST_CASE("chat request: model and stream are read") {
  const auto request = parse_text(with_fields(R"("model":"claude-x","stream":true)"));
  CHECK(request.model == "claude-x");
  CHECK(request.stream);
  CHECK_FALSE(parse_text(with_fields(R"("stream":false)")).stream);
  CHECK_FALSE(parse_text(with_fields(R"("stream":null,"model":null)")).stream);
}

TEST_CASE("chat request: a session is named by its id, and null names none") {
  CHECK(parse_text(with_fields(R"("session_id":"my chat é")")).session == "my chat é");
  CHECK(parse_text(with_fields(R"("session_id":null)")).session.empty());
  CHECK(parse_text(with_fields("")).session.empty());
}

TEST_CASE("chat request: who asks is not the body's to say") {
  CHECK(parse_text(with_fields(R"("client":"root","user":"root")")).client.empty());
}

TEST_CASE("chat request: a bad field is a 400 that names it") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({})", "messages"},
      {R"({"messages":null})", "messages"},
      {R"({"messages":"Hi"})", "messages"},
      {R"({"messages":{}})", "messages"},
      {R"({"messages":[]})", "messages"},
      {with_messages("[1]"), "messages[0]"},
      {with_messages("[null]"), "messages[0]"},
      {with_messages("[[]]"), "messages[0]"},
      {with_messages("[{}]"), "messages[0].role"},
      {with_messages(R"([{"role":null,"content":"a"}])"), "messages[0].role"},
      {with_messages(R"([{"role":1,"content":"a"}])"), "messages[0].role"},
      {with_messages(R"([{"role":"","content":"a"}])"), "messages[0].role"},
      {with_messages(R"([{"role":"User","content":"a"}])"), "messages[0].role"},
      {with_messages(R"([{"role":"function","name":"f","content":"a"}])"), "messages[0].role"},
      {with_messages(R"([{"role":"user","content":"a"},{"role":"bot","content":"b"}])"),
       "messages[1].role"},
      {with_messages(R"([{"role":"user","content":1}])"), "messages[0].content"},
      {with_messages(R"([{"role":"user","content":true}])"), "messages[0].content"},
      {with_messages(R"([{"role":"user","content":{"type":"text","text":"a"}}])"),
       "messages[0].content"},
      {with_messages(R"([{"role":"user","content":["a"]}])"), "messages[0].content[0]"},
      {with_messages(R"([{"role":"user","content":[{"text":"a"}]}])"),
       "messages[0].content[0].type"},
      {with_messages(R"([{"role":"user","content":[{"type":"text","text":"a"},{"type":"text"}]}])"),
       "messages[0].content[1].text"},
      {with_messages(R"([{"role":"user","content":[{"type":"text","text":7}]}])"),
       "messages[0].content[0].text"},
      {with_messages(R"([{"role":"user","content":[{"type":"image_url","image_url":{}}]}])"),
       "messages[0].content[0].type"},
      {with_messages(R"([{"role":"user","content":[{"type":"refusal"}]}])"),
       "messages[0].content[0].refusal"},
      {with_messages(R"([{"role":"user","content":"x"},{"role":"user","content":[null]}])"),
       "messages[1].content[0]"}};
  for (const auto& each : cases) {
    const auto& body = each.first;
    const auto& param = each.second;
    CAPTURE(body);
    CHECK(param_of(body) == param);
  }
}

TEST_CASE("chat request: the last user message must say something") {
  for (const std::string nothing : {R"("content":null)", R"("content":"")", R"("content":[])",
                                    R"("x":1)", R"("content":[{"type":"text","text":""}])"}) {
    const std::string field = nothing;
    CAPTURE(field);
    CHECK(param_of(with_messages(R"([{"role":"user",)" + field + "}]")) == "messages[0].content");
    CHECK(param_of(with_messages(R"([{"role":"user","content":"a"},{"role":"user",)" + field +
                                 "}]")) == "messages[1].content");
  }
}

TEST_CASE("chat request: a bad tool call is a 400 that names it") {
  const auto call = [](const std::string& one) {
    return with_messages(R"([{"role":"user","content":"a"},{"role":"assistant","tool_calls":[)" +
                         one + "]}]");
  };
  const std::string at = "messages[1].tool_calls[0]";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"1", at},
      {R"({"id":"1"})", at + ".function"},
      {R"({"id":"1","function":1})", at + ".function"},
      {R"({"id":"1","function":{"name":"f"}})", at + ".function.arguments"},
      {R"({"id":"1","function":{"name":"f","arguments":{}}})", at + ".function.arguments"},
      {R"({"id":"1","function":{"name":"f","arguments":"{"}})", at + ".function.arguments"},
      {R"({"id":"1","function":{"name":"f","arguments":"[]"}})", at + ".function.arguments"},
      {R"({"id":"1","function":{"name":"f","arguments":"null"}})", at + ".function.arguments"},
      {R"({"id":"1","function":{"name":"f","arguments":"{\"a\":1e999}"}})",
       at + ".function.arguments"},
      {R"({"function":{"name":"f","arguments":"{}"}})", at + ".id"},
      {R"({"id":7,"function":{"name":"f","arguments":"{}"}})", at + ".id"},
      {R"({"id":"1","function":{"arguments":"{}"}})", at + ".function.name"}};
  for (const auto& each : cases) {
    const auto& one = each.first;
    const auto& param = each.second;
    CAPTURE(one);
    CHECK(param_of(call(one)) == param);
  }
  CHECK(param_of(with_messages(R"([{"role":"assistant","tool_calls":{}}])")) ==
        "messages[0].tool_calls");
  CHECK(param_of(with_messages(R"([{"role":"tool","content":"x"}])")) ==
        "messages[0].tool_call_id");
}

TEST_CASE("chat request: a bomb within a tool call's arguments is refused") {
  const auto body = with_messages(
      R"([{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":")" +
      std::string(100'000, '[') + R"("}}]}])");
  CHECK(error_of([&] { parse_text(body); }).kind == error_kind::invalid_request);
}

TEST_CASE("chat request: bad settings are 400s that name them") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("model":1)", "model"},
      {R"("model":"--tools=default")", "model"},
      {R"("model":"a b")", "model"},
      {R"("stream":"true")", "stream"},
      {R"("stream":1)", "stream"},
      {R"("stream_options":true)", "stream_options"},
      {R"("stream_options":{"include_usage":"yes"})", "stream_options.include_usage"},
      {R"("temperature":"hot")", "temperature"},
      {R"("temperature":-0.1)", "temperature"},
      {R"("temperature":2.1)", "temperature"},
      {R"("top_p":1.1)", "top_p"},
      {R"("presence_penalty":-2.5)", "presence_penalty"},
      {R"("frequency_penalty":3)", "frequency_penalty"},
      {R"("max_tokens":0)", "max_tokens"},
      {R"("max_tokens":1.5)", "max_tokens"},
      {R"("max_completion_tokens":-1)", "max_completion_tokens"},
      {R"("max_completion_tokens":"10")", "max_completion_tokens"},
      {R"("n":0)", "n"},
      {R"("n":129)", "n"},
      {R"("seed":1.5)", "seed"},
      {R"("seed":18446744073709551615)", "seed"},
      {R"("top_logprobs":21)", "top_logprobs"},
      {R"("logprobs":1)", "logprobs"},
      {R"("parallel_tool_calls":"yes")", "parallel_tool_calls"},
      {R"("enable_tools":1)", "enable_tools"},
      {R"("store":"no")", "store"},
      {R"("session_id":7)", "session_id"},
      {R"("session_id":"")", "session_id"},
      {R"("session_id":"a\nb")", "session_id"}};
  for (const auto& each : cases) {
    const auto& field = each.first;
    const auto& param = each.second;
    CAPTURE(field);
    CHECK(param_of(with_fields(field)) == param);
  }
}

TEST_CASE("chat request: known fields that are not honoured are named, each once") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("temperature":0.5)", "temperature"},
      {R"("temperature":0)", "temperature"},
      {R"("top_p":0.9)", "top_p"},
      {R"("presence_penalty":-2)", "presence_penalty"},
      {R"("frequency_penalty":2)", "frequency_penalty"},
      {R"("max_tokens":1)", "max_tokens"},
      {R"("max_completion_tokens":1000000000)", "max_completion_tokens"},
      {R"("n":2)", "n"},
      {R"("seed":-1)", "seed"},
      {R"("top_logprobs":20)", "top_logprobs"},
      {R"("logprobs":true)", "logprobs"},
      {R"("parallel_tool_calls":false)", "parallel_tool_calls"},
      {R"("enable_tools":true)", "enable_tools"},
      {R"("stop":"END")", "stop"},
      {R"("stop":["a","b"])", "stop"},
      {R"("tools":[{"type":"function","function":{"name":"f"}}])", "tools"},
      {R"("tool_choice":"required")", "tool_choice"},
      {R"("functions":[{"name":"f"}])", "functions"},
      {R"("function_call":"auto")", "function_call"},
      {R"("response_format":{"type":"json_object"})", "response_format"},
      {R"("logit_bias":{"50256":-100})", "logit_bias"},
      {R"("reasoning_effort":"high")", "reasoning_effort"},
      {R"("modalities":["text","audio"])", "modalities"},
      {R"("audio":{"voice":"alloy"})", "audio"},
      {R"("prediction":{"type":"content","content":"x"})", "prediction"},
      {R"("verbosity":"low")", "verbosity"},
      {R"("web_search_options":{})", "web_search_options"},
      {R"("service_tier":"flex")", "service_tier"},
      {R"("store":true)", "store"}};
  for (const auto& each : cases) {
    const auto& field = each.first;
    const auto& name = each.second;
    CAPTURE(field);
    CHECK(ignored_of(field) == strings{name});
  }
}

TEST_CASE("chat request: a field that asks for what happens anyway is not named") {
  for (const std::string field : {R"("temperature":1)",
                                  R"("temperature":1.0)",
                                  R"("temperature":null)",
                                  R"("top_p":1)",
                                  R"("presence_penalty":0)",
                                  R"("presence_penalty":0.0)",
                                  R"("frequency_penalty":0)",
                                  R"("n":1)",
                                  R"("top_logprobs":0)",
                                  R"("logprobs":false)",
                                  R"("logprobs":null)",
                                  R"("parallel_tool_calls":true)",
                                  R"("enable_tools":false)",
                                  R"("stop":[])",
                                  R"("stop":null)",
                                  R"("tools":[])",
                                  R"("tool_choice":"none")",
                                  R"("functions":[])",
                                  R"("function_call":"none")",
                                  R"("response_format":{"type":"text"})",
                                  R"("logit_bias":{})",
                                  R"("reasoning_effort":"none")",
                                  R"("modalities":["text"])",
                                  R"("audio":null)",
                                  R"("service_tier":"auto")",
                                  R"("store":false)",
                                  R"("max_tokens":null)"}) {
    CAPTURE(field);
    CHECK(ignored_of(field).empty());
  }
}

TEST_CASE("chat request: several ignored fields are named in a fixed order") {
  auto names = ignored_of(R"("store":true,"temperature":0,"seed":7,"stop":"x")");
  CHECK(names == ignored_of(R"("stop":"x","seed":7,"temperature":0,"store":true)"));
  std::sort(names.begin(), names.end());
  CHECK(names == strings{"seed", "stop", "store", "temperature"});
}

TEST_CASE("chat request: unknown fields are accepted everywhere and reported nowhere") {
  const auto request = parse_text(
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"Hi","cache_control":{}}],
          "name":"Ann","x":{"y":[1]}}],"user":"u","metadata":{"a":"b"},"stream_options":{"z":1},
          "prompt_cache_key":"k","":0,"nonsense":null})");
  CHECK(outline(request) == "{} user: <Hi>");
  CHECK(request.ignored_params.empty());
}

TEST_CASE("chat request: one message of many is parsed as fast as it is long") {
  std::string messages = "[";
  for (int i = 0; i < 20'000; ++i) messages += R"({"role":"user","content":"a"},)";
  const auto request = parse_text(with_messages(messages + R"({"role":"user","content":"b"}])"));
  REQUIRE(request.messages.size() == 1);
  CHECK(request.messages[0].parts.size() == 20'001);
}

TEST_CASE("chat request: a valid request with any one value replaced is parsed or refused") {
  CAPTURE(test::seed());
  test::generator random(9);
  const auto valid = json::parse(
      R"({"model":"m","messages":[{"role":"system","content":"s"},
          {"role":"user","content":[{"type":"text","text":"a"}]},
          {"role":"assistant","content":"b","tool_calls":[{"id":"1","type":"function",
            "function":{"name":"f","arguments":"{}"}}]},
          {"role":"tool","tool_call_id":"1","content":"r"}],
          "stream":true,"stream_options":{"include_usage":true},"temperature":1,"n":1,"stop":[]})");
  std::vector<std::string> places;
  const auto flat = valid.flatten();
  for (const auto& [place, value] : flat.items()) places.push_back(place);
  places.insert(places.end(),
                {"/messages", "/messages/0", "/messages/1/content", "/messages/1/content/0",
                 "/messages/2/tool_calls", "/messages/2/tool_calls/0/function", "/stream_options"});
  const std::vector<json> values = {nullptr,
                                    0,
                                    -1,
                                    1.5,
                                    true,
                                    "",
                                    "x",
                                    json::array(),
                                    json::object(),
                                    json::array({nullptr}),
                                    "--x",
                                    "{}",
                                    json::parse("18446744073709551615")};
  std::size_t refused = 0;
  for (int i = 0; i < 3'000; ++i) {
    auto body = valid;
    const auto place = random.pick(places);
    body[json::json_pointer(place)] = random.pick(values);
    CAPTURE(dump(body));
    try {
      const auto parsed = openai_chat::parse(body, {"id", 1});
      REQUIRE(parsed.reply != nullptr);
      REQUIRE(parsed.turn.messages.back().author == role::user);
    } catch (const api_error& error) {
      REQUIRE(error.kind == error_kind::invalid_request);
      REQUIRE_FALSE(error.param.empty());
      ++refused;
    }
  }
  CHECK(refused > 500);
}
