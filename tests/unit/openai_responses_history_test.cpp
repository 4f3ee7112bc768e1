// [12] openai_responses: histories that other servers' tools have a part in.
#include <string>
#include <utility>
#include <vector>

#include "tests/dialects.hpp"

using namespace claude_openai;
using test::error_of;
using test::outline;
using strings = std::vector<std::string>;

namespace {

turn_request parse_items(const std::string& items, const std::string& fields = "") {
  return openai_responses::parse(parse_body(R"({"input":[)" + items + "]" + fields + "}"),
                                 {"ID", 1})
      .turns.at(0);
}

/// The messages of a history with these items between a question and the next one.
std::string told(const std::string& items) {
  const auto all = outline(parse_items(R"({"role":"user","content":"q"},)" + items +
                                       R"(,{"role":"user","content":"z"})"));
  const std::string begin = "{} user: <q>";
  CHECK(all.substr(0, begin.size()) == begin);
  return all.substr(begin.size());
}

/// What the model is told of an item that is neither a message nor a call.
std::string note(const std::string& kind, const std::string& members) {
  return "<<system-reminder>\nThe conversation holds an item of the type '" + kind +
         "' here: " + members + "\n</system-reminder>>";
}

const std::string png = "iVBORw0KGgo=";
const std::string call = R"({"type":"function_call","call_id":"f","name":"look","arguments":"{}"})";
const std::string output = R"({"type":"function_call_output","call_id":"f","output":"seen"})";
const std::string reply_item = R"({"role":"assistant","content":"a"})";

}  // namespace

TEST_CASE(
    "responses history: a call that another server's tool has run is a call with its output") {
  const std::vector<std::pair<std::string, std::string>> items = {
      {R"({"type":"web_search_call","id":"ws","status":"completed",
           "action":{"type":"search","query":"x"}})",
       R"(call(past_call_1,web_search,{"action":{"type":"search","query":"x"}}))"
       R"( user: result(past_call_1 <{"status":"completed"}>))"},
      {R"({"type":"mcp_call","id":"mcp","server_label":"git","name":"log","arguments":"{}",
           "output":"one"})",
       R"(call(past_call_1,mcp,{"server_label":"git","name":"log","arguments":"{}"}))"
       " user: result(past_call_1 <one>)"},
      {R"({"type":"mcp_call","id":"m","server_label":"g","name":"n","arguments":"{}","output":null,
           "error":{"message":"no"}})",
       R"(call(past_call_1,mcp,{"server_label":"g","name":"n","arguments":"{}"}))"
       R"( user: failure(past_call_1 <{"error":{"message":"no"}}>))"},
      {R"({"type":"code_interpreter_call","id":"ci","code":"1+1",
           "outputs":[{"type":"logs","logs":"2"}]})",
       R"(call(past_call_1,code_interpreter,{"code":"1+1"}))"
       R"( user: result(past_call_1 <{"outputs":[{"type":"logs","logs":"2"}]}>))"},
      {R"({"type":"image_generation_call","id":"ig","status":"completed","result":")" + png + "\"}",
       "call(past_call_1,image_generation,{}) user: result(past_call_1 image(image/png," + png +
           "))"},
      {R"({"type":"no_such_call","id":"n","text":"x"})",
       R"(call(past_call_1,no_such,{"text":"x"}) user: result(past_call_1))"},
  };
  for (const auto& [item, expected] : items) {
    const auto& tried = item;
    CAPTURE(tried);
    CHECK(told(item + "," + reply_item) == " assistant: " + expected + " assistant: <a> user: <z>");
  }
}

TEST_CASE("responses history: an output of its own finds its call, wherever it stands") {
  const std::vector<std::pair<std::string, std::string>> outputs = {
      {R"("output":"2 files")", "result(past_call_1 <2 files>)"},
      {R"("status":"failed","output":"no")", "failure(past_call_1 <no>)"},
      {R"("result":"42")", R"(result(past_call_1 <{"result":"42"}>))"},
      {R"("output":[{"stdout":"s","stderr":"","outcome":{"type":"exit","exit_code":0}}])",
       R"(result(past_call_1 <{"output":[{"stdout":"s","stderr":"","outcome":)"
       R"({"type":"exit","exit_code":0}}]}>))"},
      {R"("output":{"type":"computer_screenshot","image_url":"data:image/png;base64,)" + png +
           "\"}",
       "result(past_call_1 image(image/png," + png + "))"},
  };
  for (const auto& [members, expected] : outputs) {
    const auto& tried = members;
    CAPTURE(tried);
    CHECK(told(R"({"type":"shell_call","call_id":"s","action":{"commands":["ls"]}},)" + reply_item +
               R"(,{"type":"shell_call_output","call_id":"s",)" + members + "}") ==
          R"( assistant: call(past_call_1,shell,{"action":{"commands":["ls"]}}) user: )" +
              expected + " assistant: <a> user: <z>");
  }
  CHECK(told(R"({"type":"local_shell_call","id":"ls_1","call_id":"s","action":{}},
                {"type":"local_shell_call_output","id":"s","output":"o"})") ==
        R"( assistant: call(past_call_1,local_shell,{"action":{}}) user: result(past_call_1 <o>))"
        " <z>");
  CHECK(told(R"({"type":"program","call_id":"p","code":"1","fingerprint":"x"},
                {"type":"program_output","call_id":"p","result":"2","status":"completed"})") ==
        R"( assistant: call(past_call_1,program,{"code":"1"}) user: )"
        R"(result(past_call_1 <{"result":"2","status":"completed"}>) <z>)");
}

TEST_CASE("responses history: ids that occur twice pair calls and outputs in their order") {
  const std::string shell = R"({"type":"shell_call","call_id":"s","n":)";
  const std::string said = R"({"type":"shell_call_output","call_id":"s","output":)";
  CHECK(told(shell + "1}," + said + R"("one"},)" + shell + "2}," + said + R"("two"})") ==
        R"( assistant: call(past_call_1,shell,{"n":1}) user: result(past_call_1 <one>))"
        R"( assistant: call(past_call_3,shell,{"n":2}) user: result(past_call_3 <two>) <z>)");
}

TEST_CASE("responses history: an output without its call is told all the same") {
  CHECK(told(R"({"type":"shell_call_output","call_id":"s","output":"o"})") ==
        " assistant: call(past_call_1,shell,{}) user: result(past_call_1 <o>) <z>");
}

TEST_CASE("responses history: other tools' calls do not part the client's from their outputs") {
  const std::string second =
      R"({"type":"function_call","call_id":"g","name":"look","arguments":"{}"})";
  const std::string search = R"({"type":"web_search_call","action":{}})";
  CHECK(told(call + "," + search + "," + second + "," + output +
             R"(,{"type":"function_call_output","call_id":"g","output":"too"})") ==
        R"( assistant: call(f,look,{}) call(past_call_2,web_search,{"action":{}}) call(g,look,{}))"
        " user: result(past_call_2) result(f <seen>) result(g <too>) <z>");
}

TEST_CASE("responses history: what is no call is told where the user speaks, and named") {
  const std::vector<std::pair<std::string, std::string>> items = {
      {R"({"type":"compaction","id":"c","encrypted_content":"gAAA"})", "{}"},
      {R"({"type":"mcp_approval_request","id":"r","name":"log","arguments":"{}"})",
       R"({"name":"log","arguments":"{}"})"},
      {R"({"type":"mcp_approval_response","approval_request_id":"r","approve":true})",
       R"({"approval_request_id":"r","approve":true})"},
      {R"({"type":"no_such_thing","text":"x","encrypted_content":"gAAA"})", R"({"text":"x"})"},
  };
  for (const auto& [item, members] : items) {
    const auto& shown = members;  // C++17 captures no binding
    CAPTURE(shown);
    const auto kind = string_of(parse_body(item), "type");
    CHECK(told(item) == " " + note(kind, members) + " <z>");
    CHECK(told(reply_item + "," + item + "," + reply_item) ==
          " assistant: <a> <a> user: " + note(kind, members) + " <z>");
    CHECK(parse_items(item).ignored_params == strings{"input." + kind});
  }
}

TEST_CASE("responses history: what only its server uses is left out, and named") {
  for (const std::string kind : {"compaction_trigger", "ghost_snapshot", "mcp_list_tools"}) {
    const auto item = R"({"type":")" + kind + R"(","x":"y"})";
    CHECK(told(item) == " <z>");
    CHECK(parse_items(item + R"(,{"role":"user","content":"a"})").ignored_params ==
          strings{"input." + kind});
  }
}

TEST_CASE("responses history: names of unknown items fit into a header") {
  std::string items = R"({"role":"user","content":"a"})";
  for (int i = 0; i < 100; ++i) items += R"(,{"type":"x\r\n)" + std::to_string(i) + "\"}";
  const auto names = parse_items(items).ignored_params;
  CHECK(names.size() == 32);
  CHECK(names.front() == "input.x__0");
}

TEST_CASE("responses history: a picture that the API does not read is left out, and named") {
  const auto request = parse_items(
      R"({"role":"user","content":"a"},{"type":"image_generation_call","result":"PHN2Zz4="})");
  CHECK(outline(request) ==
        "{} user: <a> assistant: call(past_call_1,image_generation,{}) user: result(past_call_1)");
  CHECK(request.ignored_params == strings{"input.image_generation_call"});
}

TEST_CASE("responses history: a call of the client's own without an output stays open") {
  CHECK(outline(parse_items(call)) == "{} user: <" + std::string(opening_prompt) +
                                          "> assistant: call(f,look,{}) user: <" +
                                          std::string(continue_prompt) + ">");
}

TEST_CASE("responses history: tools that items add are offered, in place of their namesakes") {
  const std::string fields = R"(,"tools":[{"type":"function","name":"a","description":"old"},
                                          {"type":"function","name":"b"}])";
  const std::string added = R"("tools":[{"type":"function","name":"a","description":"new"},
      {"type":"custom","name":"c"},{"type":"web_search"},
      {"type":"namespace","name":"git","tools":[{"type":"function","name":"log"}]}])";
  const std::string user = R"({"role":"user","content":"a"})";
  for (const std::string& item : {R"({"type":"additional_tools","role":"developer",)" + added + "}",
                                  R"({"type":"tool_search_call","call_id":"t","arguments":{}},
           {"type":"tool_search_output","call_id":"t",)" +
                                      added + "}"}) {
    const auto request = parse_items(user + "," + item, fields);
    strings names;
    for (const auto& tool : request.tools) names.push_back(tool.name + tool.description);
    CHECK(names == strings{"b", "anew", "c", "git.log"});
    CHECK(request.ignored_params == strings{"tools.web_search"});
  }
  CHECK(outline(parse_items(user + R"(,{"type":"additional_tools",)" + added + "}")) ==
        "{} user: <a>");
  CHECK(error_of([&] { parse_items(R"({"type":"additional_tools","tools":[{}]})"); }).param ==
        "input[0].tools[0].type");
}

TEST_CASE("responses history: a configuration update counts from then on") {
  const std::string user = R"({"role":"user","content":"a"})";
  const auto request =
      parse_items(user + R"(,{"type":"configuration_update","reasoning":{"effort":"high"},
                  "text":{"verbosity":"low"}})",
                  R"(,"reasoning":{"effort":"low","summary":"auto"})");
  CHECK(request.effort == reasoning_effort::high);
  CHECK(request.ignored_params == strings{"text.verbosity"});
  CHECK(outline(request) == "{} user: <a>");
}
