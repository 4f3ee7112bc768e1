// [12] openai_responses: requests, from JSON to the neutral form, and what their answers repeat.
#include <string>
#include <utility>
#include <vector>

#include "tests/dialects.hpp"

using namespace claude_openai;
using test::error_of;
using test::outline;
using strings = std::vector<std::string>;
using tree = test::json;  // compares without regard to the order of members

namespace {

turn_request parse_text(const std::string& body) {
  return openai_responses::parse(parse_body(body), {"ID", 1}).turns.at(0);
}

turn_request with(const std::string& fields) {
  return parse_text(R"({"input":"Hi")" + (fields.empty() ? "" : "," + fields) + "}");
}

std::string outline_of(const std::string& input) {
  return outline(parse_text(R"({"input":)" + input + "}"));
}

/// What the parts of a user's message are read as.
std::string user_parts(const std::string& parts) {
  return outline_of(R"([{"role":"user","content":[)" + parts + "]}]");
}

api_error refusal_of(const std::string& body) {
  const auto error = error_of([&] { parse_text(body); });
  CHECK(error.kind == error_kind::invalid_request);
  CHECK_FALSE(error.message.empty());
  return error;
}

/// The `param` of the 400 that a body, an input or an item gets.
std::string param_of_fields(const std::string& fields) {
  return refusal_of(R"({"input":"Hi",)" + fields + "}").param;
}
std::string param_of_input(const std::string& input) {
  return refusal_of(R"({"input":)" + input + "}").param;
}
std::string param_of_item(const std::string& item) { return param_of_input("[" + item + "]"); }
std::string param_of_part(const std::string& part) {
  return param_of_item(R"({"role":"user","content":[)" + part + "]}");
}

bool tells(const api_error& error, const std::string& words) {
  return error.message.find(words) != std::string::npos;
}

/// The response object of an answer without a word to this request.
tree response_to(const std::string& fields) {
  const auto parsed = openai_responses::parse(
      parse_body(R"({"input":"Hi")" + (fields.empty() ? "" : "," + fields) + "}"), {"ID", 1});
  return test::rendered(*parsed.reply, test::script().stop());
}

const std::string png = "iVBORw0KGgo=";
const std::string pdf = "JVBERi0xLjQK";
const std::string tool = R"({"type":"function","name":"look","parameters":{"type":"object"}})";

}  // namespace

TEST_CASE("responses request: the smallest one has defaults for all the rest") {
  const auto request = with("");
  CHECK(outline(request) == "{} user: <Hi>");
  CHECK(request.model.empty());
  CHECK_FALSE(request.sampling.max_tokens);
  CHECK_FALSE(request.sampling.temperature);
  CHECK_FALSE(request.sampling.top_p);
  CHECK(request.tools.empty());
  CHECK(request.choice.kind == tool_choice::how::automatic);
  CHECK(request.choice.parallel);
  CHECK(request.effort == reasoning_effort::none);
  CHECK_FALSE(request.thinking_tokens);
  CHECK_FALSE(request.schema);
  CHECK_FALSE(request.agent);
  CHECK_FALSE(request.stream);
  CHECK(request.ignored_params.empty());
}

TEST_CASE("responses request: input is required, a text or items") {
  CHECK(refusal_of("{}").param == "input");
  CHECK(param_of_input("7") == "input");
  CHECK(param_of_input("{}") == "input");
  CHECK(param_of_input("[]") == "input");
  CHECK(param_of_input(R"(["Hi"])") == "input[0]");
}

TEST_CASE("responses request: an input that says nothing is refused, as by the API") {
  for (const std::string input :
       {R"("")", R"([{"role":"user","content":""}])", R"([{"role":"user","content":[]}])",
        R"([{"role":"user","content":[{"type":"input_text","text":""}]}])"}) {
    CAPTURE(input);
    CHECK(param_of_input(input) == "input");
  }
}

TEST_CASE("responses request: instructions alone are answered, as in a chat") {
  CHECK(outline_of(R"([{"role":"developer","content":"Say hi."}])") ==
        "{Say hi.} user: <" + std::string(continue_prompt) + ">");
}

TEST_CASE("responses request: a body that was meant for another endpoint is told which") {
  const auto chat = refusal_of(R"({"messages":[{"role":"user","content":"Hi"}]})");
  CHECK(chat.param == "messages");
  CHECK(tells(chat, "/v1/chat/completions"));
  const auto part = refusal_of(R"({"input":[{"role":"user","content":[{"type":"tool_result"}]}]})");
  CHECK(part.param == "input[0].content[0].type");
  CHECK(tells(part, "/v1/messages"));
  CHECK(with(R"("messages":[])").ignored_params.empty());  // unknown fields do no harm
}

TEST_CASE("responses request: what OpenAI would keep for the client is refused") {
  for (const std::string field : {"conversation", "prompt"}) {
    const auto error = refusal_of(R"({"input":"Hi",")" + field + R"(":{"id":"x"}})");
    CHECK(error.param == field);
    CHECK(tells(error, "previous_response_id"));
  }
  CHECK(outline(with(R"("conversation":null,"prompt":null)")) == "{} user: <Hi>");
}

TEST_CASE("responses request: instructions come before leading items, later ones stay") {
  CHECK(outline(parse_text(R"({"instructions":"one","input":[
            {"type":"message","role":"developer","content":[{"type":"input_text","text":"two"}]},
            {"role":"user","content":"a"},
            {"role":"system","content":"three"}]})")) ==
        "{one\ntwo} user: <a> <<system-reminder>\nthree\n</system-reminder>>");
  CHECK(param_of_fields(R"("instructions":7)") == "instructions");
}

TEST_CASE("responses request: items are messages, with or without saying so") {
  CHECK(outline_of(R"([{"role":"user","content":"1"},
                       {"type":"message","id":"msg_1","status":"completed","role":"assistant",
                        "content":[{"type":"output_text","text":"2","annotations":[]},
                                   {"type":"refusal","refusal":"no"}]},
                       {"type":"message","role":"user","content":[
                         {"type":"input_text","text":"3"},{"type":"text","text":"4"}]}])") ==
        "{} user: <1> assistant: <2> <no> user: <3> <4>");
  CHECK(param_of_item("{}") == "input[0].role");
  CHECK(param_of_item(R"({"role":"tool","content":"x"})") == "input[0].role");
  CHECK(param_of_item(R"({"role":"user"})") == "input[0].content");
  CHECK(param_of_item(R"({"role":"user","content":7})") == "input[0].content");
  CHECK(param_of_part("{}") == "input[0].content[0].type");
  CHECK(param_of_part(R"({"type":"input_text"})") == "input[0].content[0].text");
  CHECK(param_of_part(R"({"type":"input_audio"})") == "input[0].content[0].type");
}

TEST_CASE("responses request: images come as a data URI or an address") {
  CHECK(user_parts(R"({"type":"input_image","image_url":"data:image/png;base64,)" + png +
                   R"(","detail":"auto"},{"type":"input_text","text":"What?"})") ==
        "{} user: image(image/png," + png + ") <What?>");
  CHECK(user_parts(R"({"type":"input_image","image_url":"https://x.example/a"})") ==
        "{} user: image(url https://x.example/a)");
  CHECK(parse_text(R"({"input":[{"role":"user","content":[{"type":"input_image","detail":"high",
                      "image_url":"https://x.example/a"}]}]})")
            .ignored_params == strings{"image_url.detail"});
  const std::string part = "input[0].content[0]";
  CHECK(param_of_part(R"({"type":"input_image"})") == part + ".image_url");
  CHECK(param_of_part(R"({"type":"input_image","file_id":"f"})") == part + ".file_id");
  CHECK(param_of_part(R"({"type":"input_image","image_url":"file:///x"})") == part + ".image_url");
  CHECK(param_of_part(R"({"type":"input_image","image_url":"data:image/png;base64,A*"})") ==
        part + ".image_url");
}

TEST_CASE("responses request: files are PDF data or an address") {
  CHECK(user_parts(R"({"type":"input_file","filename":"a.pdf",
                       "file_data":"data:application/pdf;base64,)" +
                   pdf + R"("})") == "{} user: document(application/pdf," + pdf + ",a.pdf)");
  CHECK(user_parts(R"({"type":"input_file","file_data":")" + pdf + R"("})") ==
        "{} user: document(application/pdf," + pdf + ")");
  CHECK(user_parts(R"({"type":"input_file","file_url":"https://x.example/a.pdf"})") ==
        "{} user: document(url https://x.example/a.pdf)");
  const std::string part = "input[0].content[0]";
  CHECK(param_of_part(R"({"type":"input_file"})") == part + ".file_data");
  CHECK(param_of_part(R"({"type":"input_file","file_id":"f"})") == part + ".file_id");
  CHECK(param_of_part(R"({"type":"input_file","file_data":")" + png + R"("})") ==
        part + ".file_data");
  CHECK(param_of_part(R"({"type":"input_file","file_url":"file:///etc/passwd"})") ==
        part + ".file_url");
}

TEST_CASE("responses request: calls are the assistant's, their outputs the user's") {
  CHECK(outline_of(R"([{"role":"user","content":"a"},
                       {"type":"function_call","id":"fc_1","call_id":"c1","name":"look",
                        "arguments":"{\"b\":1,\"a\":2}","status":"completed"},
                       {"type":"custom_tool_call","call_id":"c2","name":"patch","input":"*** x"},
                       {"type":"function_call_output","call_id":"c1","output":"seen"},
                       {"type":"custom_tool_call_output","call_id":"c2","output":[
                         {"type":"input_text","text":"done"},
                         {"type":"input_image","image_url":"data:image/png;base64,)" +
                   png + R"("}]}])") ==
        R"({} user: <a> assistant: call(c1,look,{"b":1,"a":2}) call(c2,patch,{"input":"*** x"}))"
        " user: result(c1 <seen>) result(c2 <done> image(image/png," +
            png + "))");
  CHECK(outline_of(R"([{"type":"function_call_output","call_id":"c","output":""}])") ==
        "{} user: result(c)");
}

TEST_CASE("responses request: a call or an output that lacks something is refused by its field") {
  const std::string call = R"({"type":"function_call")";
  CHECK(param_of_item(call + R"(,"name":"n","arguments":"{}"})") == "input[0].call_id");
  CHECK(param_of_item(call + R"(,"call_id":"c","arguments":"{}"})") == "input[0].name");
  CHECK(param_of_item(R"({"type":"custom_tool_call","call_id":"c","name":"n"})") ==
        "input[0].input");
  CHECK(param_of_item(R"({"type":"function_call_output","output":"x"})") == "input[0].call_id");
  CHECK(param_of_item(R"({"type":"function_call_output","call_id":"c"})") == "input[0].output");
  CHECK(param_of_item(R"({"type":"function_call_output","call_id":"c","output":7})") ==
        "input[0].output");
}

TEST_CASE("responses request: a call without arguments is one with none") {
  CHECK(outline_of(R"([{"type":"function_call","call_id":"c","name":"n","arguments":""},
                       {"type":"function_call_output","call_id":"c","output":"x"}])") ==
        "{} user: <" + std::string(opening_prompt) +
            "> assistant: call(c,n,{}) user: result(c <x>)");
}

TEST_CASE("responses request: an item that is not kept, or of no type, is refused") {
  CHECK(param_of_item(R"({"type":"item_reference","id":"msg_1"})") == "input[0].id");
  CHECK(param_of_item(R"({"type":7})") == "input[0].type");
}

// ---- sealed thoughts ----

TEST_CASE("responses request: a sealed thought comes back as it was") {
  const std::vector<thinking_part> thoughts = {
      {"hm \"é\"\n", "sig+/=", ""}, {"", "sig", ""}, {"", "", "cipher"}, {"a", "b", "c"}};
  for (const auto& thought : thoughts) {
    const auto sealed = openai_responses::seal(thought);
    CHECK(text::is_base64(sealed));
    CHECK(outline_of(R"([{"role":"user","content":"a"},
                         {"type":"reasoning","id":"rs_1","summary":[],"encrypted_content":")" +
                     sealed + R"("},{"role":"assistant","content":"b"},
                         {"role":"user","content":"c"}])") ==
          "{} user: <a> assistant: " + outline(content_part(thought)) + " <b> user: <c>");
  }
}

TEST_CASE("responses request: a thought that nobody here has sealed is left out") {
  const auto sealed = [](const std::string& words) { return text::to_base64(words); };
  for (const std::string& content :
       {std::string("gAAAAABo-_x"), std::string(), std::string("AAAA"), sealed("[]"), sealed("7"),
        sealed("\xFF\xFE"), sealed(R"({"thinking":"no signature"})"),
        sealed(R"({"thinking":1,"signature":2,"redacted":[]})")}) {
    CAPTURE(content);
    CHECK(outline_of(R"([{"role":"user","content":"a"},
                         {"type":"reasoning","encrypted_content":")" +
                     content +
                     R"("},{"role":"assistant","content":"b"},{"role":"user","content":"c"}])") ==
          "{} user: <a> assistant: <b> user: <c>");
  }
  CHECK(outline_of(R"([{"type":"reasoning","id":"rs_1","summary":[]},
                       {"role":"user","content":"c"}])") == "{} user: <c>");
  CHECK(param_of_item(R"({"type":"reasoning","encrypted_content":7})") ==
        "input[0].encrypted_content");
}

TEST_CASE("responses request: what is sealed and beyond the bounds of JSON is left out") {
  std::string wide = "{\"signature\":\"s\"";
  for (int i = 0; i < 20'000; ++i) wide += ",\"" + std::to_string(i) + "\":1";
  const auto deep = R"({"signature":"s","x":)" + std::string(300'000, '[') + "}";
  for (const auto& sealed : {wide + "}", deep}) {
    CHECK(outline_of(R"([{"type":"reasoning","encrypted_content":")" + text::to_base64(sealed) +
                     R"("},{"role":"user","content":"b"}])") == "{} user: <b>");
  }
}

// ---- tools ----

TEST_CASE("responses request: function tools keep name, description and schema, in order") {
  const auto request = with(R"("tools":[
      {"type":"function","name":"b","description":"Looks","strict":true,
       "parameters":{"type":"object","properties":{"z":{},"a":{}}}},
      {"type":"function","name":"a"}])");
  REQUIRE(request.tools.size() == 2);
  CHECK(request.tools[0].name == "b");
  CHECK(request.tools[0].description == "Looks");
  CHECK(request.tools[0].schema.dump() == R"({"type":"object","properties":{"z":{},"a":{}}})");
  CHECK(request.tools[1].name == "a");
  CHECK(request.tools[1].schema["type"] == "object");
  CHECK(param_of_fields(R"("tools":{})") == "tools");
  CHECK(param_of_fields(R"("tools":[{"name":"n"}])") == "tools[0].type");
  CHECK(param_of_fields(R"("tools":[{"type":"function"}])") == "tools[0].name");
  CHECK(param_of_fields(R"("tools":[{"type":"function","name":""}])") == "tools[0].name");
  CHECK(param_of_fields(R"("tools":[{"type":"function","name":"n","parameters":7}])") ==
        "tools[0].parameters");
  CHECK(param_of_fields(R"("tools":[)" + tool + "," + tool + "]") == "tools[1]");
}

TEST_CASE("responses request: a custom tool takes one text, and tells its grammar") {
  const auto request = with(R"("tools":[{"type":"custom","name":"patch","description":"Patches",
      "format":{"type":"grammar","syntax":"lark","definition":"start: /x+/"}},
      {"type":"custom","name":"say","format":{"type":"text"}}])");
  REQUIRE(request.tools.size() == 2);
  for (const auto& made : request.tools) {
    CHECK(made.schema["type"] == "object");
    CHECK(made.schema["required"].dump() == R"(["input"])");
    CHECK(made.schema["properties"].size() == 1);
    CHECK(made.schema["properties"]["input"]["type"] == "string");
  }
  const auto& told = request.tools[0].description;
  CHECK(told.find("Patches") == 0);
  CHECK(told.find("start: /x+/") != std::string::npos);
  CHECK(request.tools[1].description.empty());
  CHECK(param_of_fields(R"("tools":[{"type":"custom"}])") == "tools[0].name");
}

TEST_CASE("responses request: a tool that only OpenAI can run is left out and named") {
  for (const std::string type :
       {"web_search", "web_search_preview", "file_search", "computer_use_preview",
        "code_interpreter", "image_generation", "mcp", "local_shell", "no_such_tool"}) {
    CAPTURE(type);
    const auto request = with(R"("tools":[)" + tool + R"(,{"type":")" + type + R"("}])");
    CHECK(request.tools.size() == 1);
    CHECK(request.ignored_params == strings{"tools." + type});
  }
  CHECK(with(R"("tools":[{"type":"a\r\nb: ü"}])").ignored_params ==
        strings{"tools.a__b____"});  // it goes into a header
}

TEST_CASE("responses request: a tool that only OpenAI can run is refused where it is forced") {
  const std::string both = R"("tools":[)" + tool + R"(,{"type":"web_search"}],"tool_choice":)";
  const auto error = refusal_of(R"({"input":"Hi",)" + both + R"({"type":"web_search"}})");
  CHECK(error.param == "tool_choice");
  CHECK(tells(error, "'web_search'"));
  CHECK(param_of_fields(R"("tools":[{"type":"web_search"}],"tool_choice":"required")") ==
        "tool_choice");
}

TEST_CASE("responses request: tools of a namespace are tools with its name before their own") {
  const auto request = with(R"("tools":[{"type":"namespace","name":"git","description":"d","tools":[
      {"type":"function","name":"log"},{"type":"custom","name":"apply"}]},
      {"type":"function","name":"log"}])");
  REQUIRE(request.tools.size() == 3);
  CHECK(request.tools[0].name == "git.log");
  CHECK(request.tools[1].name == "git.apply");
  CHECK(request.tools[1].schema["properties"].contains("input"));
  CHECK(request.tools[2].name == "log");
  CHECK(outline_of(R"([{"type":"function_call","call_id":"c","namespace":"git","name":"log",
                        "arguments":"{}"},
                       {"type":"function_call_output","call_id":"c","output":"x"}])") ==
        "{} user: <" + std::string(opening_prompt) +
            "> assistant: call(c,git.log,{}) user: result(c <x>)");
  const auto param = [](const std::string& space) {
    return param_of_fields(R"("tools":[{"type":"namespace",)" + space + "}]");
  };
  CHECK(param(R"("tools":[])") == "tools[0].name");
  CHECK(param(R"("name":"git")") == "tools[0].tools");
  CHECK(param(R"("name":"git","tools":[{"type":"function"}])") == "tools[0].tools[0].name");
  CHECK(param(R"("name":"git","tools":[{"type":"function","name":"log"},
                                       {"type":"custom","name":"log"}])") == "tools[0].tools[1]");
}

TEST_CASE("responses request: a tool in another endpoint's form is taken") {
  for (const std::string form :
       {R"({"name":"n","description":"D","input_schema":{"title":"T"}})",
        R"({"type":"custom","name":"n","description":"D","input_schema":{"title":"T"}})",
        R"({"type":"function","function":{"name":"n","description":"D",
                                          "parameters":{"title":"T"}}})"}) {
    CAPTURE(form);
    const auto taken = with(R"("tools":[)" + tool + "," + form + "]").tools.at(1);
    CHECK(taken.name == "n");
    CHECK(taken.description == "D");
    CHECK(taken.schema["title"] == "T");
  }
  CHECK(param_of_fields(R"("tools":[{"name":"n"}])") == "tools[0].type");
  CHECK(param_of_fields(R"("tools":[7])") == "tools[0]");
}

TEST_CASE(
    "responses request: tool_choice is auto, none, required, or a tool; calls may be single") {
  const auto chosen = [](const std::string& choice) {
    return with(R"("tools":[)" + tool + R"(,{"type":"custom","name":"say"}],)" + choice).choice;
  };
  CHECK(chosen(R"("tool_choice":"auto")").kind == tool_choice::how::automatic);
  CHECK(chosen(R"("tool_choice":"none")").kind == tool_choice::how::none);
  CHECK(chosen(R"("tool_choice":"required")").kind == tool_choice::how::any);
  const auto function = chosen(R"("tool_choice":{"type":"function","name":"look"})");
  CHECK(function.kind == tool_choice::how::named);
  CHECK(function.name == "look");
  CHECK(chosen(R"("tool_choice":{"type":"custom","name":"say"})").name == "say");
  CHECK(chosen(R"("parallel_tool_calls":true)").parallel);
  CHECK_FALSE(chosen(R"("parallel_tool_calls":false)").parallel);
  const auto param = [](const std::string& choice) {
    return param_of_fields(R"("tools":[)" + tool + R"(],"tool_choice":)" + choice);
  };
  CHECK(param(R"("some")") == "tool_choice");
  CHECK(param("7") == "tool_choice");
  CHECK(param(R"({"type":"function"})") == "tool_choice.name");
  CHECK(param(R"({"type":"function","name":"other"})") == "tool_choice");
  CHECK(param_of_fields(R"("tool_choice":"required")") == "tool_choice");
  CHECK(param_of_fields(R"("parallel_tool_calls":"no")") == "parallel_tool_calls");
}

// ---- everything else ----

TEST_CASE("responses request: a summary is shown whatever else is asked for") {
  CHECK(with(R"("reasoning":{"summary":"auto"})").shows_thinking);
  CHECK(with(R"("reasoning":{"summary":"auto"},"include":[])").shows_thinking);
  CHECK_FALSE(with(R"("reasoning":{"summary":null})").shows_thinking);
}

TEST_CASE(
    "responses request: an unknown part of the past is named, and told unless it is the model's") {
  const auto past = [](const std::string& speaker) {
    return parse_text(R"({"input":[{"role":")" + speaker +
                      R"(","content":[{"type":"text","text":"c"},
        {"type":"output_audio","transcript":"x"}]},{"role":"user","content":"b"}]})");
  };
  CHECK(
      outline(past("user")) ==
      "{} user: <c> <<system-reminder>\nThe conversation holds an item of the type 'output_audio' "
      "here: {\"type\":\"output_audio\",\"transcript\":\"x\"}\n</system-reminder>> <b>");
  CHECK(outline(past("assistant")) == "{} user: <Hello.> assistant: <c> user: <b>");
  for (const std::string speaker : {"user", "assistant"}) {
    CHECK(past(speaker).ignored_params == std::vector<std::string>{"input.output_audio"});
  }
}

TEST_CASE("responses request: reasoning tells the effort") {
  CHECK(with(R"("reasoning":{"effort":"high","summary":"auto"})").effort == reasoning_effort::high);
  CHECK(with(R"("reasoning":{"effort":null})").effort == reasoning_effort::none);
  CHECK_FALSE(with(R"("reasoning":{"effort":null})").no_thinking);
  CHECK(with(R"("reasoning":{"effort":"none"})").no_thinking);
  CHECK(with("").thinking_field == std::string("reasoning"));
  CHECK(param_of_fields(R"("reasoning":{"effort":"huge"})") == "reasoning.effort");
  CHECK(param_of_fields(R"("reasoning":"high")") == "reasoning");
  CHECK(param_of_fields(R"("include":"x")") == "include");
  CHECK(param_of_fields(R"("include":[7])") == "include[0]");
}

TEST_CASE("responses request: text.format is text, JSON or a schema") {
  CHECK_FALSE(with(R"("text":{"format":{"type":"text"},"verbosity":"medium"})").schema);
  const auto any = with(R"("text":{"format":{"type":"json_object"}})");
  REQUIRE(any.schema);
  CHECK(any.schema->dump() == R"({"type":"object"})");
  const auto schema = with(R"("text":{"format":{"type":"json_schema","name":"n","strict":true,
                              "schema":{"type":"object","properties":{"a":{}}}}})");
  REQUIRE(schema.schema);
  CHECK(schema.schema->dump() == R"({"type":"object","properties":{"a":{}}})");
  CHECK(schema.schema_field == "text.format.schema");
  for (
      const std::string format :
      {R"({"type":"json_object","schema":{"type":"object","properties":{"a":{}}}})",
       R"({"type":"json_schema","json_schema":{"schema":{"type":"object","properties":{"a":{}}}}})"}) {
    const auto other = with(R"("text":{"format":)" + format + "}");
    REQUIRE(other.schema);
    CHECK(*other.schema == *schema.schema);
  }
  CHECK(with(R"("response_format":{"type":"json_object"})").ignored_params ==
        std::vector<std::string>{"response_format"});
  CHECK(param_of_fields(R"("text":{"format":{}})") == "text.format.type");
  CHECK(param_of_fields(R"("text":{"format":{"type":"xml"}})") == "text.format.type");
  CHECK(param_of_fields(R"("text":{"format":{"type":"json_schema"}})") == "text.format.schema");
  CHECK(param_of_fields(R"("text":"json")") == "text");
}

TEST_CASE("responses request: model, stream, limits and this proxy's own fields are read") {
  const auto request = with(R"("model":"m","stream":true,"temperature":0.5,"top_p":0.25,
                               "max_output_tokens":77,"enable_tools":true,"show_activity":true)");
  CHECK(request.model == "m");
  CHECK(request.stream);
  CHECK(request.sampling.temperature == 0.5);
  CHECK(request.sampling.top_p == 0.25);
  CHECK(request.sampling.max_tokens == 77);
  REQUIRE(request.agent);
  CHECK(request.agent->show_activity);
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"model", R"("-x")"},      {"stream", "1"},  {"temperature", "2.1"},
      {"temperature", "-0.1"},   {"top_p", "1.1"}, {"max_output_tokens", "0"},
      {"enable_tools", R"("")"}, {"model", "[]"}};
  for (const auto& [field, value] : wrong) {
    const auto& tried = value;
    CAPTURE(tried);
    CHECK(param_of_fields("\"" + field + "\":" + value) == field);
  }
}

TEST_CASE("responses request: what cannot be honoured is named, what asks for nothing is not") {
  CHECK(with(R"("truncation":"auto","top_logprobs":3,"max_tool_calls":1,"background":true,
                "service_tier":"flex","text":{"verbosity":"low"})")
            .ignored_params == strings{"text.verbosity", "max_tool_calls", "truncation",
                                       "top_logprobs", "background", "service_tier"});
  CHECK(with(R"("prompt_cache_retention":"24h")").cache_ttl == "1h");
  CHECK(with(R"("prompt_cache_retention":"in_memory")").cache_ttl.empty());
  CHECK(with(R"("prompt_cache_options":{"ttl":"30m"})").cache_field == "prompt_cache_options.ttl");
  CHECK(with(R"("truncation":"disabled","top_logprobs":0,"background":false,"store":false,
                "service_tier":"auto","metadata":{},"user":"u","prompt_cache_key":"k",
                "safety_identifier":"s","max_tool_calls":null)")
            .ignored_params.empty());
  CHECK(with(R"("unheard_of":1)").ignored_params == strings{"unheard_of"});
}

TEST_CASE("responses request: what the fields of a field ask for in vain is named") {
  CHECK(with(R"("reasoning":{"context":"all_turns","mode":"pro","summary":"auto"},
                "stream_options":{"include_obfuscation":true},
                "tools":[{"type":"function","name":"f","async":true,"output_schema":{}}])")
            .ignored_params == strings{"tools.async", "tools.output_schema", "reasoning.context",
                                       "reasoning.mode", "stream_options.include_obfuscation"});
  CHECK(with(R"("reasoning":{"context":"auto","mode":"standard"},"stream_options":{})")
            .ignored_params.empty());
}

TEST_CASE("responses request: a summary alone asks for thoughts to be shown") {
  CHECK(with(R"("reasoning":{"summary":"auto"})").shows_thinking);
  CHECK_FALSE(with(R"("reasoning":{"effort":"low"})").shows_thinking);  // the effort decides later
}

TEST_CASE("responses: the answer repeats the request, with OpenAI's defaults") {
  auto response = response_to("");
  for (const char* own : {"id", "object", "created_at", "status", "background", "error",
                          "incomplete_details", "model", "output", "usage"}) {
    CHECK(response.erase(own) == 1);
  }
  CHECK(response == tree{{"instructions", nullptr},
                         {"max_output_tokens", nullptr},
                         {"max_tool_calls", nullptr},
                         {"metadata", tree::object()},
                         {"parallel_tool_calls", true},
                         {"previous_response_id", nullptr},
                         {"reasoning", {{"effort", nullptr}, {"summary", nullptr}}},
                         {"service_tier", "default"},
                         {"store", true},
                         {"temperature", 1.0},
                         {"text", {{"format", {{"type", "text"}}}}},
                         {"tool_choice", "auto"},
                         {"tools", tree::array()},
                         {"top_p", 1.0},
                         {"truncation", "disabled"},
                         {"user", nullptr}});
}

TEST_CASE("responses: one that has only begun is told as it will be, in progress and empty") {
  const std::string fields = R"("model":"m","metadata":{"a":"b"},"store":true)";
  const tree begun = tree::parse(openai_responses::make_begun_response(
                                     {"ID", 1}, parse_body(R"({"input":"Hi",)" + fields + "}"))
                                     .dump());
  CHECK(begun["status"] == "in_progress");
  CHECK(begun["output"] == tree::array());
  CHECK(begun["model"] == "m");
  auto ended = response_to(fields);
  for (const char* changed : {"status", "output", "model", "usage"})
    ended[changed] = begun[changed];
  CHECK(begun == ended);
}

TEST_CASE("responses: the answer repeats each field of the request as it was given") {
  const std::string given = R"({"instructions":"i","max_output_tokens":7,"max_tool_calls":1,
      "metadata":{"a":"b"},"parallel_tool_calls":false,"previous_response_id":"resp_0",
      "reasoning":{"effort":"low","summary":"auto"},"service_tier":"flex","store":false,
      "temperature":0.5,"text":{"format":{"type":"json_object"}},
      "tool_choice":{"type":"function","name":"look"},"tools":[)" +
                            tool + R"(],"top_p":0.5,
      "truncation":"auto","user":"u"})";
  const auto response = response_to(given.substr(1, given.size() - 2));
  const auto fields = tree::parse(given);
  for (const auto& [name, value] : fields.items()) {
    const auto& tried = name;
    CAPTURE(tried);
    CHECK(response.value(name, tree("absent")) == value);
  }
  CHECK_FALSE(response_to(R"("unheard_of":1,"include":[])").contains("unheard_of"));
}
