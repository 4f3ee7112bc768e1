// [09] openai_chat: requests, from JSON to the neutral form.
#include <algorithm>
#include <map>
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
  return openai_chat::parse(parse_body(body), {"id", 1}).turns.front();
}

/// A request of one user message and these further fields.
std::string with_fields(const std::string& fields) {
  return R"({"messages":[{"role":"user","content":"Hi"}])" + (fields.empty() ? "" : "," + fields) +
         "}";
}

std::string with_messages(const std::string& messages) {
  return R"({"messages":)" + messages + "}";
}

std::string outline(const media_part& media) {
  const bool image = media.kind == media_part::media_kind::image;
  return std::string(image ? " image(" : " document(") + media.media_type + "," + media.data +
         media.url + (media.title.empty() ? "" : "," + media.title) + ")";
}

std::string outline(const tool_result_part& result) {
  std::string all = " result(" + result.call_id;
  for (const auto& part : result.content) {
    const auto* said = std::get_if<text_part>(&part);
    all += said != nullptr ? " <" + said->text + ">" : outline(std::get<media_part>(part));
  }
  return all + ")";
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
                     [&](const media_part& p) { all += outline(p); },
                     [](const thinking_part&) {},
                     [](const api_block_part&) {},
                     [&](const tool_result_part& p) { all += outline(p); },
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
          "{} user: result(1)");
  }
}

TEST_CASE(
    "chat request: leading instructions are joined in order, later ones stay at their place") {
  CHECK(outline_of(R"([{"role":"system","content":"zero"},
                       {"role":"developer","content":"one"},
                       {"role":"user","content":"a"},
                       {"role":"developer","content":[{"type":"text","text":"two"},
                                                      {"type":"text","text":"three"}]},
                       {"role":"assistant","content":"b"},
                       {"role":"system","content":""},
                       {"role":"user","content":"c"},
                       {"role":"system","content":"four"}])") ==
        "{zero\none} user: <a> <<system-reminder>\ntwo\nthree\n</system-reminder>> assistant: <b> "
        "user: <c> <<system-reminder>\nfour\n</system-reminder>>");
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
                       {"role":"user","content":"b"},
                       {"role":"assistant","content":null,"refusal":"Not that."},
                       {"role":"user","content":"c"},
                       {"role":"assistant","content":"Yes.","refusal":null}])") ==
        "{} user: <a> assistant: <No.> user: <b> assistant: <Not that.> user: <c> "
        "assistant: <Yes.> user: <Please continue.>");
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
        " call(c2,now,{}) user: result(c1 <sunny>) result(c2 <12> <noon>) <So?>");
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
       "messages[0].content[0].image_url.url"},
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
      {R"({"id":"1","custom":{"name":"f"}})", at + ".custom.input"},
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

TEST_CASE("chat request: whatever the arguments of a history's call are, they become an object") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"("{\"a\":1}")", R"({"a":1})"},
      {R"({"a":1})", R"({"a":1})"},
      {"null", "{}"},
      {"[]", "{}"},
      {R"("")", "{}"},
      {R"(" \n")", "{}"},
      {R"("null")", "{}"},
      {R"("[]")", "{}"},
      {R"("[1]")", R"({"_invalid_arguments":"[1]"})"},
      {"7", R"({"_invalid_arguments":7})"}};
  for (const auto& [arguments, input] : cases) {
    const auto& shown = arguments;  // C++17 captures no binding
    CAPTURE(shown);
    const auto of = [&](const std::string& call) {
      const auto request = parse_text(
          with_messages(R"([{"role":"user","content":"a"},{"role":"assistant",)" + call + "}]"));
      return dump(std::get<tool_call_part>(request.messages.at(1).parts.at(0)).input);
    };
    const auto function = R"({"name":"f","arguments":)" + arguments + "}";
    CHECK(of(R"("tool_calls":[{"id":"1","function":)" + function + "}]") == input);
    CHECK(of(R"("function_call":)" + function) == input);
    CHECK(of(R"("function_call":{"name":"f"})") == "{}");
  }
}

TEST_CASE("chat request: calls without an id are given one, and results find them in their order") {
  auto request = parse_text(with_messages(R"([{"role":"user","content":"a"},
      {"role":"assistant","tool_calls":[
        {"id":"","function":{"name":"f","arguments":"{}"}},
        {"id":"c","function":{"name":"g","arguments":"{}"}},
        {"id":"","function":{"name":"h","arguments":"{}"}}]},
      {"role":"tool","tool_call_id":"","content":"F"},
      {"role":"tool","tool_call_id":"c","content":"G"},
      {"role":"tool","tool_call_id":"","content":"H"},
      {"role":"assistant","tool_calls":[{"id":"","function":{"name":"f","arguments":"{}"}}]},
      {"role":"tool","tool_call_id":"","content":"again"}])"));
  CHECK_NOTHROW(match_tool_calls(request.messages));
  std::map<std::string, std::string> said;
  for (const auto at : {2U, 4U}) {
    for (const auto& part : request.messages.at(at).parts) {
      const auto& result = std::get<tool_result_part>(part);
      said[result.call_id] = std::get<text_part>(result.content.at(0)).text;
    }
  }
  std::string told;
  for (const auto at : {1U, 3U}) {
    for (const auto& id : call_ids(request.messages.at(at))) told += said.at(id) + " ";
  }
  CHECK(told == "F G H again ");
  CHECK(said.size() == 4);
  CHECK(said.count("") == 0);
}

TEST_CASE("chat request: arguments that the token limit has cut are told as they are") {
  CHECK(outline_of(R"([{"role":"user","content":"a"},{"role":"assistant","tool_calls":[
      {"id":"1","function":{"name":"f","arguments":"{\"a\": \"b"}}]},
      {"role":"tool","tool_call_id":"1","content":"bad arguments"}])") ==
        R"({} user: <a> assistant: call(1,f,{"_invalid_arguments":"{\"a\": \"b"}) )"
        "user: result(1 <bad arguments>)");
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
      {R"("n":9)", "n"},
      {R"("seed":1.5)", "seed"},
      {R"("seed":18446744073709551615)", "seed"},
      {R"("top_logprobs":21)", "top_logprobs"},
      {R"("logprobs":1)", "logprobs"},
      {R"("parallel_tool_calls":"yes")", "parallel_tool_calls"},
      {R"("enable_tools":1)", "enable_tools"},
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
      {R"("presence_penalty":-2)", "presence_penalty"},
      {R"("frequency_penalty":2)", "frequency_penalty"},
      {R"("seed":-1)", "seed"},
      {R"("top_logprobs":20)", "top_logprobs"},
      {R"("logprobs":true)", "logprobs"},
      {R"("logit_bias":{"50256":-100})", "logit_bias"},
      {R"("modalities":["text","audio"])", "modalities"},
      {R"("audio":{"voice":"alloy"})", "audio"},
      {R"("prediction":{"type":"content","content":"x"})", "prediction"},
      {R"("verbosity":"low")", "verbosity"},
      {R"("web_search_options":{})", "web_search_options"},
      {R"("service_tier":"flex")", "service_tier"}};
  for (const auto& each : cases) {
    const auto& field = each.first;
    const auto& name = each.second;
    CAPTURE(field);
    CHECK(ignored_of(field) == strings{name});
  }
}

TEST_CASE("chat request: what is honoured, or asks for what happens anyway, is not named") {
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
                                  R"("temperature":0.5,"max_tokens":1)",
                                  R"("top_p":0.9,"stop":"END","n":2)",
                                  R"("max_completion_tokens":1000000000)",
                                  R"("stop":["a","b"],"enable_tools":true)",
                                  R"("tools":[{"type":"function","function":{"name":"f"}}])",
                                  R"("functions":[{"name":"f"}],"function_call":"auto")",
                                  R"("response_format":{"type":"json_object"})",
                                  R"("reasoning_effort":"high")",
                                  R"("parallel_tool_calls":false)",
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
  auto names = ignored_of(R"("logprobs":true,"seed":7,"audio":{"voice":"x"})");
  CHECK(names == ignored_of(R"("audio":{"voice":"x"},"seed":7,"logprobs":true)"));
  std::sort(names.begin(), names.end());
  CHECK(names == strings{"audio", "logprobs", "seed"});
}

// ---- tools -------------------------------------------------------------------------------------

namespace {

const std::string look_tool = R"({"type":"function","function":{"name":"look"}})";

std::string with_tools(const std::string& tools, const std::string& more = "") {
  return with_fields(R"("tools":[)" + tools + "]" + (more.empty() ? "" : "," + more));
}

/// `kind name parallel`, so that a choice reads at a glance.
std::string choice_of(const std::string& body) {
  const auto choice = parse_text(body).choice;
  std::string told;
  switch (choice.kind) {
    case tool_choice::how::automatic: told = "auto"; break;
    case tool_choice::how::none: told = "none"; break;
    case tool_choice::how::any: told = "any"; break;
    case tool_choice::how::named: told = "named " + choice.name; break;
  }
  for (const auto& name : choice.allowed) told += " of " + name;
  return told + (choice.parallel ? "" : " one");
}

void check_params(const std::vector<std::pair<std::string, std::string>>& cases) {
  for (const auto& each : cases) {
    const auto& body = each.first;
    const auto& param = each.second;
    CAPTURE(body);
    CHECK(param_of(body) == param);
  }
}

/// A request of one user message with that one part.
std::string with_part(const std::string& part, const std::string& speaker = "user") {
  return with_messages(R"([{"role":")" + speaker + R"(","tool_call_id":"c","content":[)" + part +
                       "]}]");
}

constexpr const char* png = "iVBORw0KGgoAAAAN";
constexpr const char* pdf = "JVBERi0xLjQK";

std::string image_part(const std::string& url, const std::string& more = "") {
  return R"({"type":"image_url","image_url":{"url":")" + url + "\"" + more + "}}";
}

std::string file_part(const std::string& fields) {
  return R"({"type":"file","file":{)" + fields + "}}";
}

}  // namespace

TEST_CASE("chat tools: name, description and schema are taken in order, names as they are") {
  const auto tools =
      parse_text(with_tools(R"({"type":"function","function":{"name":"get weather/v2","strict":true,
                                 "description":"The weather","parameters":{"type":"object",
                                 "properties":{"b":{},"a":{}},"required":["b"]}}},)" +
                            look_tool))
          .tools;
  REQUIRE(tools.size() == 2);
  CHECK(tools[0].name == "get weather/v2");
  CHECK(tools[0].description == "The weather");
  CHECK(dump(tools[0].schema) ==
        R"({"type":"object","properties":{"b":{},"a":{}},"required":["b"]})");
  CHECK(tools[1].name == "look");
  CHECK(tools[1].description.empty());
  CHECK(dump(tools[1].schema) == R"({"type":"object","properties":{}})");
}

TEST_CASE("chat tools: a schema that the model is not held to is named") {
  const auto ignored = [](const std::string& strict) {
    return parse_text(
               with_tools(R"({"type":"function","function":{"name":"f","strict":)" + strict + "}}"))
        .ignored_params;
  };
  CHECK(ignored("true") == std::vector<std::string>{"tools.strict"});
  CHECK(ignored("false").empty());
  CHECK(ignored("null").empty());
}

TEST_CASE("chat tools: parameters may be null or leave out their type") {
  const auto schema_of = [](const std::string& parameters) {
    const auto tools =
        parse_text(with_tools(R"({"type":"function","function":{"name":"f","parameters":)" +
                              parameters + "}}"))
            .tools;
    return dump(tools.at(0).schema);
  };
  CHECK(schema_of("null") == R"({"type":"object","properties":{}})");
  CHECK(schema_of("{}") == R"({"type":"object"})");
}

TEST_CASE("chat tools: 128 of them are 128") {
  std::string tools;
  for (int i = 0; i < 128; ++i) {
    tools += (i > 0 ? "," : "") +
             (R"({"type":"function","function":{"name":"t)" + std::to_string(i) + R"("}})");
  }
  const auto parsed = parse_text(with_tools(tools)).tools;
  REQUIRE(parsed.size() == 128);
  CHECK(parsed[127].name == "t127");
}

TEST_CASE("chat tools: a bad tool is a 400 that names it") {
  const auto tool = [](const std::string& function) {
    return with_tools(look_tool + R"(,{"type":"function","function":)" + function + "}");
  };
  const auto long_name = R"({"name":")" + std::string(257, 'x') + "\"}";
  check_params(
      {{with_fields(R"("tools":{})"), "tools"},
       {with_fields(R"("tools":"look")"), "tools"},
       {with_tools("1"), "tools[0]"},
       {with_tools(R"({"function":{"name":"f"}})"), "tools[0].type"},
       {with_tools(R"({"type":"web_search"})"), "tools[0].type"},
       {with_tools(R"({"type":"function"})"), "tools[0].function"},
       {tool("1"), "tools[1].function"},
       {tool("{}"), "tools[1].function.name"},
       {tool(R"({"name":7})"), "tools[1].function.name"},
       {tool(R"({"name":""})"), "tools[1].function.name"},
       {tool(long_name), "tools[1].function.name"},
       {tool(R"({"name":"f","description":1})"), "tools[1].function.description"},
       {tool(R"({"name":"f","parameters":[]})"), "tools[1].function.parameters"},
       {tool(R"({"name":"f","parameters":{"type":"array"}})"), "tools[1].function.parameters"},
       {tool(R"({"name":"look"})"), "tools[1].function"}});
}

TEST_CASE("chat tools: another dialect's form of a tool is taken, as is that of a custom one") {
  const auto parsed_of = [](const std::string& one) {
    const auto tools = parse_text(with_tools(one)).tools;
    return tools.at(0).name + " " + tools.at(0).description + " " + dump(tools.at(0).schema);
  };
  const std::string schema = R"({"type":"object","properties":{"a":{}}})";
  const std::string named = R"("name":"f","description":"Does",)";
  for (const auto& one :
       {R"({"type":"function","function":{)" + named + R"("parameters":)" + schema + "}}",
        R"({"type":"function",)" + named + R"("parameters":)" + schema + "}",
        "{" + named + R"("input_schema":)" + schema + "}",
        R"({"type":"custom",)" + named + R"("input_schema":)" + schema + "}"}) {
    CAPTURE(one);
    CHECK(parsed_of(one) == "f Does " + schema);
  }
  const std::string grammar = R"("type":"grammar",)";
  const std::string definition = R"("syntax":"lark","definition":"start: /x/")";
  for (const auto& one :
       {R"({"type":"custom","custom":{"name":"f","format":{)" + grammar + R"("grammar":{)" +
            definition + "}}}}",
        R"({"type":"custom","name":"f","format":{)" + grammar + definition + "}}"}) {
    CAPTURE(one);
    CHECK(parsed_of(one).find("grammar:\nstart: /x/ ") != std::string::npos);
    CHECK(parsed_of(one).find(R"("required":["input"])") != std::string::npos);
  }
  CHECK(outline_of(R"([{"role":"user","content":"a"},{"role":"assistant","tool_calls":[
      {"id":"1","type":"custom","custom":{"name":"f","input":"x y"}}]},
      {"role":"tool","tool_call_id":"1","content":"z"}])") ==
        R"({} user: <a> assistant: call(1,f,{"input":"x y"}) user: result(1 <z>))");
}

TEST_CASE("chat tools: functions of the old kind are tools, called one at a time") {
  const auto request = parse_text(
      with_fields(R"("functions":[{"name":"a","description":"A"},{"name":"b","parameters":{}}])"));
  REQUIRE(request.tools.size() == 2);
  CHECK(request.tools[0].name == "a");
  CHECK(request.tools[0].description == "A");
  CHECK(request.tools[1].name == "b");
  CHECK_FALSE(request.choice.parallel);
  check_params(
      {{with_fields(R"("functions":{})"), "functions"},
       {with_fields(R"("functions":[{}])"), "functions[0].name"},
       {with_fields(R"("functions":[{"name":"a"},{"name":"a"}])"), "functions[1]"},
       {with_fields(R"("functions":[{"name":"a","parameters":1}])"), "functions[0].parameters"},
       {with_tools(look_tool, R"("functions":[{"name":"look"}])"), "functions[0]"}});
}

TEST_CASE("chat tools: the choice among them") {
  const std::vector<std::pair<std::string, std::string>> choices = {
      {R"("x":1)", "auto"},
      {R"("tool_choice":null)", "auto"},
      {R"("tool_choice":"auto")", "auto"},
      {R"("tool_choice":"none")", "none"},
      {R"("tool_choice":"required")", "any"},
      {R"("tool_choice":{"type":"function","function":{"name":"look"}})", "named look"},
      {R"("tool_choice":{"type":"function","name":"look"})", "named look"},
      {R"("tool_choice":{"type":"custom","custom":{"name":"look"}})", "named look"},
      {R"("tool_choice":{"type":"tool","name":"look"})", "named look"},
      {R"("tool_choice":{"type":"any"})", "any"},
      {R"("tool_choice":"any")", "any"},
      {R"("tool_choice":{"type":"auto"})", "auto"},
      {R"("tool_choice":{"type":"none"})", "none"},
      {R"("tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[
          {"type":"function","function":{"name":"look"}}]}})",
       "auto of look"},
      {R"("tool_choice":{"type":"allowed_tools","mode":"required","tools":[
          {"type":"function","name":"look"}]})",
       "any of look"},
      {R"("parallel_tool_calls":true)", "auto"},
      {R"("parallel_tool_calls":null)", "auto"},
      {R"("parallel_tool_calls":false)", "auto one"},
      {R"("parallel_tool_calls":false,"tool_choice":"required")", "any one"},
      {R"("function_call":"none")", "none"},
      {R"("function_call":"auto")", "auto"},
      {R"("function_call":{"name":"look"})", "named look"}};
  for (const auto& each : choices) {
    CAPTURE(each.first);
    CHECK(choice_of(with_tools(look_tool, each.first)) == each.second);
  }
}

TEST_CASE("chat tools: a bad choice is a 400 that names it") {
  const auto chosen = [](const std::string& choice) {
    return with_tools(look_tool, R"("tool_choice":)" + choice);
  };
  const auto only = [&](const std::string& allowed) {
    return chosen(R"({"type":"allowed_tools","allowed_tools":)" + allowed + "}");
  };
  check_params({{chosen("\"some\""), "tool_choice"},
                {only("{}"), "tool_choice.allowed_tools.tools"},
                {only(R"({"tools":[{"function":{"name":"see"}}]})"), "tool_choice"},
                {chosen("7"), "tool_choice"},
                {chosen("[]"), "tool_choice"},
                {chosen("{}"), "tool_choice.name"},
                {chosen(R"({"type":"function","function":{}})"), "tool_choice.function.name"},
                {chosen(R"({"type":"function","function":{"name":"see"}})"), "tool_choice"},
                {with_fields(R"("tool_choice":"required")"), "tool_choice"},
                {with_fields(R"("tool_choice":{"type":"function","function":{"name":"look"}})"),
                 "tool_choice"},
                {with_tools(look_tool, R"("function_call":"sometimes")"), "function_call"},
                {with_tools(look_tool, R"("function_call":{})"), "function_call.name"},
                {with_tools(look_tool, R"("function_call":{"name":"see"})"), "function_call"},
                {with_tools(look_tool, R"("parallel_tool_calls":1)"), "parallel_tool_calls"}});
}

TEST_CASE("chat tools: a call and its result in the old form find each other") {
  auto request = parse_text(with_messages(
      R"([{"role":"user","content":"q"},
          {"role":"assistant","content":null,"function_call":{"name":"look","arguments":"{}"}},
          {"role":"function","name":"look","content":"sunny"}])"));
  CHECK_NOTHROW(match_tool_calls(request.messages));
  REQUIRE(request.messages.size() == 3);
  CHECK(std::get<tool_result_part>(request.messages[2].parts[0]).content.size() == 1);
  check_params({{with_messages(R"([{"role":"assistant","function_call":{"arguments":"{}"}}])"),
                 "messages[0].function_call.name"},
                {with_messages(R"([{"role":"assistant","function_call":1}])"),
                 "messages[0].function_call"}});
}

TEST_CASE("chat tools: two calls in the old form are two calls, with an id each") {
  auto request = parse_text(with_messages(
      R"([{"role":"user","content":"q"},
          {"role":"assistant","function_call":{"name":"look","arguments":"{}"}},
          {"role":"function","name":"look","content":"sunny"},
          {"role":"assistant","function_call":{"name":"look","arguments":"{}"}},
          {"role":"function","name":"look","content":"warm"}])"));
  REQUIRE_NOTHROW(match_tool_calls(request.messages));
  REQUIRE(request.messages.size() == 5);
  // The API wants the ids of a conversation's calls to be unique.
  CHECK(call_ids(request.messages[1]) != call_ids(request.messages[3]));
}

// ---- images and files --------------------------------------------------------------------------

TEST_CASE("chat media: images by data and by address, where they stand") {
  CHECK(outline_of(R"([{"role":"user","content":[{"type":"text","text":"a"},)" +
                   image_part("data:image/jpeg;base64," + std::string(png)) +
                   R"(,{"type":"text","text":"b"}]}])") ==
        "{} user: <a> image(image/png," + std::string(png) + ") <b>");
  for (const std::string url : {"http://x/a.png", "https://x/a.png", "HTTPS://x/a"}) {
    CAPTURE(url);
    CHECK(outline(parse_text(with_part(image_part(url)))) == "{} user: image(," + url + ")");
  }
}

TEST_CASE("chat media: documents keep their file name, by URI or bare base64") {
  const auto data = "\"file_data\":\"" + std::string(pdf) + "\"";
  CHECK(outline(parse_text(with_part(file_part(data)))) ==
        "{} user: document(application/pdf," + std::string(pdf) + ")");
  const auto uri = R"("file_data":"data:application/pdf;base64,)" + std::string(pdf) + "\"";
  CHECK(outline(parse_text(with_part(file_part(uri + R"(,"filename":"a.pdf")")))) ==
        "{} user: document(application/pdf," + std::string(pdf) + ",a.pdf)");
}

TEST_CASE("chat media: a tool's result may hold images and documents") {
  CHECK(outline(parse_text(with_part(image_part("http://x/a") + "," +
                                         file_part(R"("file_data":")" + std::string(pdf) + "\""),
                                     "tool"))) ==
        "{} user: result(c image(,http://x/a) document(application/pdf," + std::string(pdf) + "))");
}

TEST_CASE("chat media: a detail that is asked for in vain is named, once") {
  const auto asked = [](const std::string& one, const std::string& other) {
    return parse_text(with_part(image_part("http://x", one) + "," + image_part("http://y", other)))
        .ignored_params;
  };
  CHECK(asked("", "").empty());
  CHECK(asked(R"(,"detail":"auto")", R"(,"detail":null)").empty());
  CHECK(asked(R"(,"detail":"low")", R"(,"detail":"high")") == strings{"image_url.detail"});
}

TEST_CASE("chat media: bad images and files are 400s that name them") {
  const std::string at = "messages[0].content[0]";
  const auto data = [](const std::string& value) { return R"("file_data":")" + value + "\""; };
  check_params(
      {{with_part(R"({"type":"image_url"})"), at + ".image_url"},
       {with_part(R"({"type":"image_url","image_url":"http://x"})"), at + ".image_url"},
       {with_part(R"({"type":"image_url","image_url":{"url":7}})"), at + ".image_url.url"},
       {with_part(image_part("")), at + ".image_url.url"},
       {with_part(image_part("ftp://x/a.png")), at + ".image_url.url"},
       {with_part(image_part("file:///etc/passwd")), at + ".image_url.url"},
       {with_part(image_part(png)), at + ".image_url.url"},
       {with_part(image_part("data:image/png;base64,")), at + ".image_url.url"},
       {with_part(image_part("data:image/png;base64,A")), at + ".image_url.url"},
       {with_part(image_part("data:image/png,AAAA")), at + ".image_url.url"},
       {with_part(image_part("data:image/bmp;base64,AAAA")), at + ".image_url.url"},
       {with_part(image_part("data:image/png;base64," + std::string(pdf))), at + ".image_url.url"},
       {with_part(image_part("http://x", R"(,"detail":1)")), at + ".image_url.detail"},
       {with_part(R"({"type":"file"})"), at + ".file"},
       {with_part(file_part("")), at + ".file.file_data"},
       {with_part(file_part(R"("file_id":"file-1")")), at + ".file.file_id"},
       {with_part(file_part(data(""))), at + ".file.file_data"},
       {with_part(file_part(data("AAAA"))), at + ".file.file_data"},
       {with_part(file_part(data("n o"))), at + ".file.file_data"},
       {with_part(file_part(data(png))), at + ".file.file_data"},
       {with_part(file_part(data(pdf) + R"(,"filename":1)")), at + ".file.filename"},
       {with_part(R"({"type":"input_audio","input_audio":{}})"), at + ".type"},
       {with_part(R"({"type":"image","source":{}})"), at + ".type"}});
}

TEST_CASE("chat media: only who may speak in images is heard in them") {
  for (const std::string speaker : {"system", "developer", "assistant", "function"}) {
    CAPTURE(speaker);
    CHECK(param_of(with_part(image_part("http://x"), speaker)) == "messages[0].content[0].type");
    CHECK(param_of(with_part(file_part(R"("file_data":"JVBERi0x")"), speaker)) ==
          "messages[0].content[0].type");
  }
}

// ---- the form of the answer ---------------------------------------------------------------------

TEST_CASE("chat format: a schema is taken as it is, and where it was given is known") {
  const auto schema_of = [](const std::string& format) {
    const auto request = parse_text(with_fields(R"("response_format":)" + format));
    return request.schema ? dump(*request.schema) + " " + request.schema_field : "none";
  };
  CHECK(schema_of("null") == "none");
  CHECK(schema_of(R"({"type":"text"})") == "none");
  CHECK(schema_of(R"({"type":"json_object"})") == R"({"type":"object"} )");
  CHECK(schema_of(R"({"type":"json_schema","json_schema":{"name":"n","strict":true,
                      "schema":{"type":"object","properties":{"b":{},"a":{}}}}})") ==
        R"({"type":"object","properties":{"b":{},"a":{}}} response_format.json_schema.schema)");
}

TEST_CASE("chat format: a schema counts wherever the clients of other servers put it") {
  const std::string schema = R"({"type":"object","properties":{"a":{}}})";
  const std::vector<std::pair<std::string, std::string>> places = {
      {R"("response_format":{"type":"json_object","schema":)", "}"},
      {R"("response_format":{"type":"json_schema","schema":)", "}"},
      {R"("response_format":{"type":"json_object","response_schema":)", "}"},
      {R"("response_format":{"type":"json_object","value":)", "}"},
      {R"("response_format":{"type":"json_object","json_schema":)", "}"},
      {R"("response_format":{"type":"json_object","json_schema":{"name":"n","schema":)", "}}"},
      {R"("guided_json":)", ""},
      {R"("json_schema":)", ""},
      {R"("structured_outputs":{"json":)", "}"}};
  for (const auto& [before, after] : places) {
    const auto fields = before + schema + after;
    CAPTURE(fields);
    const auto request = parse_text(with_fields(fields));
    REQUIRE(request.schema);
    CHECK(dump(*request.schema) == schema);
    CHECK_FALSE(request.schema_field.empty());
    CHECK(request.ignored_params.empty());
    check_params({{with_fields(before + R"({"type":"array"})" + after), request.schema_field}});
  }
}

TEST_CASE("chat format: what asks for another form of the answer is named") {
  const auto ignored = [](const std::string& fields) {
    return parse_text(with_fields(fields)).ignored_params;
  };
  CHECK(ignored(R"("guided_choice":["a","b"])") == strings{"guided_choice"});
  CHECK(ignored(R"("guided_regex":"a+","grammar":"root ::= 1")") ==
        strings{"guided_regex", "grammar"});
  CHECK(ignored(R"("structured_outputs":{"choice":["a"],"regex":null})") ==
        strings{"structured_outputs.choice"});
  CHECK(ignored(R"("format":"json")") == strings{"format"});
  CHECK(ignored(R"("structured_outputs":true,"grammar":"")").empty());
  CHECK(ignored(R"("response_format":{"type":"text"})").empty());
  check_params({{with_fields(R"("structured_outputs":"json")"), "structured_outputs"}});
}

TEST_CASE("chat format: a bad one is a 400 that names it") {
  const auto format = [](const std::string& one) {
    return with_fields(R"("response_format":)" + one);
  };
  const std::string at = "response_format.json_schema";
  check_params({{format("\"json_object\""), "response_format"},
                {format("{}"), "response_format.type"},
                {format(R"({"type":"xml"})"), "response_format.type"},
                {format(R"({"type":"json_schema"})"), at},
                {format(R"({"type":"json_schema","json_schema":1})"), at},
                {format(R"({"type":"json_schema","json_schema":{}})"), at + ".schema"},
                {format(R"({"type":"json_schema","json_schema":{"schema":[]}})"), at + ".schema"},
                {format(R"({"type":"json_schema","json_schema":{"schema":{"type":"array"}}})"),
                 at + ".schema"}});
}

// ---- sampling and the rest ----------------------------------------------------------------------

TEST_CASE("chat sampling: what is asked for is taken, what is not asked for is not set") {
  const auto nothing = parse_text(with_fields("")).sampling;
  CHECK_FALSE(nothing.temperature);
  CHECK_FALSE(nothing.top_p);
  CHECK_FALSE(nothing.max_tokens);
  CHECK(nothing.stop.empty());
  const auto all =
      parse_text(with_fields(R"("temperature":0,"top_p":0.5,"max_tokens":7,"stop":"END")"))
          .sampling;
  CHECK(all.temperature == 0.0);
  CHECK(all.top_p == 0.5);
  CHECK(all.max_tokens == 7);
  CHECK(all.stop == strings{"END"});
  const auto most = parse_text(with_fields(
      R"("temperature":2,"top_p":1,"max_completion_tokens":1000000000,"stop":["a","b","c","d"])"));
  CHECK(most.sampling.temperature == 2.0);
  CHECK(most.sampling.max_tokens == 1'000'000'000);
  CHECK(most.sampling.stop == strings{"a", "b", "c", "d"});
}

TEST_CASE("chat sampling: of the two names of the limit the new one counts") {
  for (const std::string fields : {R"("max_tokens":5,"max_completion_tokens":9)",
                                   R"("max_completion_tokens":9,"max_tokens":5)"}) {
    CHECK(parse_text(with_fields(fields)).sampling.max_tokens == 9);
  }
  CHECK(parse_text(with_fields(R"("max_completion_tokens":null,"max_tokens":5)"))
            .sampling.max_tokens == 5);
}

TEST_CASE("chat request: choices and efforts") {
  const auto choices = [](const std::string& fields) {
    return openai_chat::parse(parse_body(with_fields(fields)), {"id", 1}).turns.size();
  };
  CHECK(choices("") == 1);
  CHECK(choices(R"("n":8)") == 8);
  CHECK(parse_text(with_fields("")).effort == reasoning_effort::none);
  CHECK_FALSE(parse_text(with_fields("")).no_thinking);
  for (const auto name : reasoning_effort_names) {
    CAPTURE(name);
    const auto field = R"("reasoning_effort":")" + std::string(name) + "\"";
    CHECK(name_of(parse_text(with_fields(field)).effort) == name);
    CHECK(parse_text(with_fields(field)).no_thinking == (name == "none"));
  }
}

TEST_CASE("chat request: an agent is asked for, and may show what it does") {
  CHECK_FALSE(parse_text(with_fields("")).agent);
  CHECK_FALSE(parse_text(with_fields(R"("enable_tools":false,"show_activity":true)")).agent);
  const auto silent = parse_text(with_fields(R"("enable_tools":true)")).agent;
  REQUIRE(silent);
  CHECK_FALSE(silent->show_activity);
  CHECK(parse_text(with_fields(R"("enable_tools":true,"show_activity":true)"))
            .agent.value()
            .show_activity);
}

TEST_CASE("chat request: more bad settings are 400s that name them") {
  check_params({{with_fields(R"("n":2.5)"), "n"},
                {with_fields(R"("n":"2")"), "n"},
                {with_fields(R"("top_p":-0.1)"), "top_p"},
                {with_fields(R"("top_p":"x")"), "top_p"},
                {with_fields(R"("max_tokens":1000000001)"), "max_tokens"},
                {with_fields(R"("stop":7)"), "stop"},
                {with_fields(R"("stop":{})"), "stop"},
                {with_fields(R"("stop":["a",1])"), "stop[1]"},
                {with_fields(R"("stop":["a","b","c","d","e"])"), "stop"},
                {with_fields(R"("reasoning_effort":"extreme")"), "reasoning_effort"},
                {with_fields(R"("reasoning_effort":3)"), "reasoning_effort"},
                {with_fields(R"("show_activity":"yes")"), "show_activity"}});
}

TEST_CASE("chat request: unknown fields are accepted everywhere and reported nowhere") {
  const auto request = parse_text(
      R"({"messages":[{"role":"user","content":[{"type":"text","text":"Hi","cache_control":{}}],
          "x":{"y":[1]}}],"user":"u","metadata":{"a":"b"},"stream_options":{"z":1},
          "prompt_cache_key":"k","":0,"nonsense":null})");
  CHECK(outline(request) == "{} user: <Hi>");
  CHECK(request.ignored_params.empty());
}

TEST_CASE("chat request: what a message or a stream asks for in vain is named") {
  const auto request = parse_text(
      R"({"messages":[{"role":"system","content":"S","name":"boss"},
          {"role":"user","content":"Hi","name":"Ann"},
          {"role":"assistant","content":"Yes?","audio":{"id":"a"}},{"role":"user","content":"x"}],
          "stream":true,"stream_options":{"include_obfuscation":true}})");
  CHECK(text::join(request.ignored_params, " ") ==
        "messages.name messages.audio stream_options.include_obfuscation");
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
          {"role":"user","content":[{"type":"text","text":"a"},
            {"type":"image_url","image_url":{"url":"http://x","detail":"auto"}},
            {"type":"file","file":{"file_data":"JVBERi0x","filename":"f"}}]},
          {"role":"assistant","content":"b","tool_calls":[{"id":"1","type":"function",
            "function":{"name":"f","arguments":"{}"}}]},
          {"role":"tool","tool_call_id":"1","content":"r"}],
          "stream":true,"stream_options":{"include_usage":true},"temperature":1,"n":1,"stop":[],
          "tools":[{"type":"function","function":{"name":"f","description":"d",
            "parameters":{"type":"object"}}}],"tool_choice":"auto","parallel_tool_calls":true,
          "response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object"}}},
          "reasoning_effort":"low","max_tokens":9,"top_p":1,"enable_tools":true})");
  std::vector<std::string> places;
  const auto flat = valid.flatten();
  for (const auto& [place, value] : flat.items()) places.push_back(place);
  places.insert(
      places.end(),
      {"/messages", "/messages/0", "/messages/1/content", "/messages/1/content/0",
       "/messages/2/tool_calls", "/messages/2/tool_calls/0/function", "/stream_options", "/tools",
       "/tools/0", "/tools/0/function", "/tools/0/function/parameters", "/tool_choice",
       "/response_format", "/messages/1/content/1/image_url", "/messages/1/content/2/file"});
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
      REQUIRE(parsed.turns.front().messages.back().author == role::user);
    } catch (const api_error& error) {
      REQUIRE(error.kind == error_kind::invalid_request);
      REQUIRE_FALSE(error.param.empty());
      ++refused;
    }
  }
  CHECK(refused > 500);
}

// ---- what other servers have left in a history ----

TEST_CASE("chat request: calls and results of the Messages API are calls and results") {
  const std::string use = R"({"type":"tool_use","id":"t","name":"look","input":{"a":1}})";
  const auto history = [&](const std::string& calls, const std::string& result) {
    return outline_of(R"([{"role":"user","content":"a"},{"role":"assistant","content":[)" + use +
                      "]" + calls + "}," + result + R"(,{"role":"user","content":"b"}])");
  };
  const std::string told =
      R"({} user: <a> assistant: call(t,look,{"a":1}) user: result(t <x>) <b>)";
  const std::string own = R"({"role":"tool","tool_call_id":"t","content":"x"})";
  CHECK(history("", R"({"role":"user","content":[{"type":"tool_result","tool_use_id":"t",
                        "content":[{"type":"text","text":"x"}]}]})") == told);
  CHECK(history("", own) == told);
  CHECK(history(R"(,"tool_calls":[{"id":"t","type":"function","function":{"name":"look"}}])",
                own) == told);
  CHECK(param_of(with_messages(R"([{"role":"user","content":[)" + use + "]}]")) ==
        "messages[0].content[0].type");
}

TEST_CASE("chat request: an unknown part of the past is named, and told unless it is the model's") {
  const auto past = [](const std::string& speaker, const std::string& part) {
    return parse_text(
        with_messages(R"([{"role":"user","content":"a"},{"role":")" + speaker + R"(","content":[)" +
                      part + R"(,{"type":"text","text":"c"}]},{"role":"user","content":"b"}])"));
  };
  const auto heard = past("user", R"({"type":"input_audio","input_audio":{"data":")" +
                                      std::string(100, 'A') + R"(","format":"wav"}})");
  CHECK(outline(heard) ==
        "{} user: <a> <<system-reminder>\nThe conversation holds an item of the type 'input_audio' "
        "here: {\"type\":\"input_audio\",\"input_audio\":{\"format\":\"wav\"}}\n"
        "</system-reminder>> <c> <b>");
  CHECK(heard.ignored_params == strings{"messages.input_audio"});
  const auto thought = past("assistant", R"({"type":"thinking","thinking":"hm"})");
  CHECK(outline(thought) == "{} user: <a> assistant: <c> user: <b>");
  CHECK(thought.ignored_params == strings{"messages.thinking"});
}

TEST_CASE("chat request: an answer in sound stays a turn, and the sound is named") {
  const auto spoken = [](const std::string& content) {
    return parse_text(
        with_messages(R"([{"role":"user","content":"a"},{"role":"assistant","content":)" + content +
                      R"(,"audio":{"id":"x"}},{"role":"user","content":"b"}])"));
  };
  CHECK(outline(spoken("null")) == "{} user: <a> assistant: <[audio]> user: <b>");
  CHECK(outline(spoken(R"("c")")) == "{} user: <a> assistant: <c> user: <b>");
  CHECK(spoken("null").ignored_params == strings{"messages.audio"});
}

TEST_CASE("chat request: keywords of an answer's schema that nothing checks are named, once") {
  const std::string field = "response_format.json_schema.schema";
  const auto named = [](const std::string& members) {
    return ignored_of(
        R"("response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{)" +
        members + "}}}");
  };
  CHECK(
      named(R"("properties":{"a":{"unevaluatedProperties":false},"b":{"unevaluatedProperties":{}}},
                 "nullable":true)") ==
      strings{field + ".unevaluatedProperties", field + ".nullable"});
  CHECK(named(R"("properties":{"a":{"nullable":true,"unevaluatedItems":true}},"nullable":false)")
            .empty());
}
