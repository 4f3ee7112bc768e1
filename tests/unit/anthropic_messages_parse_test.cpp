// [11] anthropic_messages: requests, from JSON to the neutral form, and the counting of tokens.
#include <string>
#include <utility>
#include <vector>

#include "tests/dialects.hpp"

using namespace claude_openai;
using test::error_of;
using test::outline;
using strings = std::vector<std::string>;

namespace {

turn_request parse_text(const std::string& body) {
  return anthropic_messages::parse(parse_body(body), {"id", 1}).turns.at(0);
}

/// A request of one user message and these further fields.
std::string with_fields(const std::string& fields) {
  return R"({"model":"m","max_tokens":9,"messages":[{"role":"user","content":"Hi"}])" +
         (fields.empty() ? "" : "," + fields) + "}";
}

std::string with_messages(const std::string& messages) {
  return R"({"model":"m","max_tokens":9,"messages":)" + messages + "}";
}

std::string outline_of(const std::string& messages) {
  return outline(parse_text(with_messages(messages)));
}

/// What the blocks of a user's, or else of an assistant's message are read as.
std::string user_blocks(const std::string& blocks) {
  return outline_of(R"([{"role":"user","content":[)" + blocks + "]}]");
}
std::string assistant_blocks(const std::string& blocks) {
  return outline_of(R"([{"role":"user","content":"a"},{"role":"assistant","content":[)" + blocks +
                    R"(]},{"role":"user","content":"b"}])");
}

api_error refusal_of(const std::string& body) {
  const auto error = error_of([&] { parse_text(body); });
  CHECK(error.kind == error_kind::invalid_request);
  CHECK_FALSE(error.message.empty());
  return error;
}

/// The `param` of the 400 that a body gets.
std::string param_of(const std::string& body) { return refusal_of(body).param; }
std::string param_of_fields(const std::string& fields) { return param_of(with_fields(fields)); }
std::string param_of_user(const std::string& block) {
  return param_of(with_messages(R"([{"role":"user","content":[)" + block + "]}]"));
}
std::string param_of_assistant(const std::string& block) {
  return param_of(with_messages(R"([{"role":"assistant","content":[)" + block + "]}]"));
}

turn_request with(const std::string& fields) { return parse_text(with_fields(fields)); }

const std::string png = "iVBORw0KGgo=";
const std::string pdf = "JVBERi0xLjQK";
const std::string png_source =
    R"("source":{"type":"base64","media_type":"image/png","data":")" + png + R"("})";
const std::string pdf_source =
    R"("source":{"type":"base64","media_type":"application/pdf","data":")" + pdf + R"("})";
const std::string tool = R"({"name":"look","input_schema":{"type":"object"}})";

}  // namespace

TEST_CASE("messages request: the smallest one has defaults for all the rest") {
  const auto request = with("");
  CHECK(outline(request) == "{} user: <Hi>");
  CHECK(request.model == "m");
  CHECK(request.sampling.max_tokens == 9);
  CHECK_FALSE(request.sampling.temperature);
  CHECK_FALSE(request.sampling.top_p);
  CHECK_FALSE(request.sampling.top_k);
  CHECK(request.sampling.stop.empty());
  CHECK(request.session.empty());
  CHECK(request.tools.empty());
  CHECK(request.choice.kind == tool_choice::how::automatic);
  CHECK(request.choice.parallel);
  CHECK(request.effort == reasoning_effort::none);
  CHECK(request.thinking_tokens == 0);
  CHECK_FALSE(request.schema);
  CHECK_FALSE(request.agent);
  CHECK_FALSE(request.stream);
  CHECK(request.ignored_params.empty());
}

TEST_CASE("messages request: model, max_tokens and messages are required") {
  const std::string messages = R"("messages":[{"role":"user","content":"Hi"}])";
  CHECK(param_of(R"({"max_tokens":9,)" + messages + "}") == "model");
  CHECK(param_of(R"({"model":"m",)" + messages + "}") == "max_tokens");
  CHECK(param_of(R"({"model":"m","max_tokens":9})") == "messages");
  CHECK(param_of(with_messages("[]")) == "messages");
  CHECK(param_of(with_messages("{}")) == "messages");
  CHECK(param_of(with_messages(R"("Hi")")) == "messages");
  CHECK(param_of(with_messages(R"(["Hi"])")) == "messages[0]");
}

TEST_CASE("messages request: a body that was meant for another endpoint is told which") {
  const auto named = [](const std::string& body, const std::string& param,
                        const std::string& endpoint) {
    const auto error = refusal_of(body);
    CHECK(error.param == param);
    CHECK_MESSAGE(error.message.find(endpoint) != std::string::npos, error.message);
  };
  named(R"({"model":"m","input":"Hi"})", "input", "/v1/responses");
  named(R"({"model":"m","prompt":"Hi"})", "prompt", "/v1/completions");
  named(with_messages(R"([{"role":"user","content":[{"type":"image_url"}]}])"),
        "messages[0].content[0].type", "/v1/chat/completions");
  named(with_messages(R"([{"role":"user","content":[{"type":"input_text"}]}])"),
        "messages[0].content[0].type", "/v1/responses");
  CHECK(with(R"("input":"x","prompt":"y")").ignored_params == strings{"input", "prompt"});
}

TEST_CASE("messages request: system is a string or text blocks, joined by line ends") {
  CHECK(outline(with(R"("system":"Be brief.")")) == "{Be brief.} user: <Hi>");
  CHECK(outline(with(R"("system":[{"type":"text","text":"one",
                                   "cache_control":{"type":"ephemeral"}},
                                  {"type":"text","text":""},
                                  {"type":"text","text":"two"}])")) == "{one\ntwo} user: <Hi>");
  CHECK(with(R"("system":null)").system.empty());
  CHECK(with(R"("system":[])").system.empty());
  CHECK(param_of_fields(R"("system":7)") == "system");
  CHECK(param_of_fields(R"("system":[{"type":"image"}])") == "system[0].type");
  CHECK(param_of_fields(R"("system":[{"type":"text"}])") == "system[0].text");
  CHECK(param_of_fields(R"("system":[{"text":"x"}])") == "system[0].type");
}

TEST_CASE("messages request: a client's billing tag is no instruction") {
  const std::string tag = R"({"type":"text","text":"x-anthropic-billing-header: cc=1"})";
  CHECK(
      with(R"("system":[)" + tag + R"(,{"type":"text","text":"one"},{"type":"text","text":"two"}])")
          .system == "one\ntwo");
  CHECK(with(R"("system":[)" + tag + "]").system.empty());
}

TEST_CASE("messages request: a system message among the others stays at its place") {
  CHECK(outline(parse_text(R"({"model":"m","max_tokens":9,"system":"one","messages":[
            {"role":"user","content":"a"},
            {"role":"system","content":[{"type":"text","text":"two"}]},
            {"role":"user","content":"b"}]})")) ==
        "{one} user: <a> <<system-reminder>\ntwo\n</system-reminder>> <b>");
  CHECK(param_of(with_messages(R"([{"role":"system"}])")) == "messages[0].content");
}

TEST_CASE("messages request: history keeps its roles, order and text; empty texts say nothing") {
  CHECK(outline_of(R"([{"role":"user","content":"1"},{"role":"assistant","content":"2"},
                       {"role":"user","content":[{"type":"text","text":"3","citations":null,
                                                  "cache_control":{"type":"ephemeral"}},
                                                 {"type":"text","text":""},
                                                 {"type":"text","text":"é\u0000"}]}])") ==
        "{} user: <1> assistant: <2> user: <3> <é" + std::string(1, '\0') + ">");
  CHECK(outline_of(R"([{"role":"user","content":"1"},{"role":"user","content":"2"},
                       {"role":"assistant","content":""},{"role":"user","content":"3"}])") ==
        "{} user: <1> <2> <3>");
}

TEST_CASE("messages request: a history that ends with the assistant is answered") {
  CHECK(outline_of(R"([{"role":"user","content":"1"},{"role":"assistant","content":"2"}])") ==
        "{} user: <1> assistant: <2> user: <" + std::string(continue_prompt) + ">");
}

TEST_CASE("messages request: who speaks is the user or the assistant") {
  CHECK(param_of(with_messages(R"([{"content":"a"}])")) == "messages[0].role");
  CHECK(param_of(with_messages(R"([{"role":"user","content":"a"},
                                   {"role":"tool","content":"a"}])")) == "messages[1].role");
  CHECK(param_of(with_messages(R"([{"role":"user"}])")) == "messages[0].content");
  CHECK(param_of(with_messages(R"([{"role":"user","content":null}])")) == "messages[0].content");
  CHECK(param_of(with_messages(R"([{"role":"user","content":7}])")) == "messages[0].content");
  CHECK(param_of_user("7") == "messages[0].content[0]");
  CHECK(param_of_user("{}") == "messages[0].content[0].type");
  CHECK(param_of_user(R"({"type":"text"})") == "messages[0].content[0].text");
}

TEST_CASE("messages request: a message of the user's that says nothing is refused, as by the API") {
  for (const std::string content : {R"("")", "[]", R"([{"type":"text","text":""}])"}) {
    CAPTURE(content);
    CHECK(param_of(with_messages(R"([{"role":"user","content":)" + content + "}]")) ==
          "messages[0].content");
  }
}

TEST_CASE("messages request: images come as bytes or as an address, from the user alone") {
  CHECK(user_blocks(R"({"type":"image",)" + png_source + "}") ==
        "{} user: image(image/png," + png + ")");
  CHECK(user_blocks(R"({"type":"image","source":{"type":"url","url":"https://x.example/a"}},
                       {"type":"text","text":"What is it?"})") ==
        "{} user: image(url https://x.example/a) <What is it?>");
  CHECK(param_of_assistant(R"({"type":"image",)" + png_source + "}") ==
        "messages[0].content[0].type");
}

TEST_CASE("messages request: the bytes of an image say what it is, whatever it is called") {
  const auto read = [](const std::string& type, const std::string& data) {
    return user_blocks(R"({"type":"image","source":{"type":"base64","media_type":")" + type +
                       R"(","data":")" + data + R"("}})");
  };
  CHECK(read("image/jpeg", png) == "{} user: image(image/png," + png + ")");
  CHECK(read("image/webp", "AAAA") == "{} user: image(image/webp,AAAA)");
}

TEST_CASE("messages request: documents are PDF, text or an address, with a title") {
  CHECK(user_blocks(R"({"type":"document","title":"T","context":"c",)" + pdf_source + "}") ==
        "{} user: document(application/pdf," + pdf + ",T)");
  CHECK(user_blocks(R"({"type":"document","source":{"type":"text","media_type":"text/plain",
                        "data":"plain words"}})") == "{} user: document(text/plain,plain words)");
  CHECK(user_blocks(R"({"type":"document","source":{"type":"url","url":"https://x.example/p"}})") ==
        "{} user: document(url https://x.example/p)");
  CHECK(param_of_assistant(R"({"type":"document",)" + pdf_source + "}") ==
        "messages[0].content[0].type");
}

TEST_CASE("messages request: what a document and a search result hold beside their data is kept") {
  const std::vector<std::string> kept = {
      R"({"type":"document","source":{"type":"base64","media_type":"application/pdf","data":")" +
          pdf + R"("},"title":"T","context":"C","citations":{"enabled":true}})",
      R"({"type":"document","source":{"type":"content","content":"all"}})",
      R"({"type":"document","source":{"type":"content","content":[{"type":"text","text":"a"}]}})",
      R"({"type":"search_result","source":"https://x","title":"T",)"
      R"("content":[{"type":"text","text":"a"}],"citations":{"enabled":true}})"};
  const auto without_order = [](const json& block) { return nlohmann::json::parse(block.dump()); };
  for (const auto& block : kept) {
    CAPTURE(block);
    const auto in_result = R"({"type":"tool_result","tool_use_id":"t","content":[)" + block + "]}";
    for (const auto& sent : {block, in_result}) {
      const auto request =
          parse_text(with_messages(R"([{"role":"user","content":[)" + sent + "]}]"));
      const auto& part = request.messages.at(0).parts.at(0);
      CHECK(without_order(render_part(part)) == nlohmann::json::parse(sent));
      // A stored session gives it back.
      const json stored =
          json::object({{"role", "user"}, {"content", json::array({render_part(part)})}});
      const auto read = decode_message(stored);
      REQUIRE(read);
      CHECK(without_order(render_part(read->parts.at(0))) == nlohmann::json::parse(sent));
    }
  }
  CHECK(param_of_user(R"({"type":"search_result","title":"T","content":[]})") ==
        "messages[0].content[0].source");
  CHECK(param_of_user(R"({"type":"document","source":{"type":"content","content":[
                          {"type":"video"}]}})") ==
        "messages[0].content[0].source.content[0].type");
  CHECK(param_of_user(R"({"type":"document","citations":{"enabled":1},)" + pdf_source + "}") ==
        "messages[0].content[0].citations.enabled");
}

TEST_CASE("messages request: a source that cannot be sent on is refused by its field") {
  const auto param_of_source = [](const std::string& kind, const std::string& source) {
    const auto param = param_of_user(R"({"type":")" + kind + R"(","source":{)" + source + "}}");
    const std::string block = "messages[0].content[0].";
    CHECK(param.compare(0, block.size(), block) == 0);
    return param.substr(std::min(param.size(), block.size()));
  };
  CHECK(param_of_user(R"({"type":"image"})") == "messages[0].content[0].source");
  CHECK(param_of_source("image", "") == "source.type");
  CHECK(param_of_source("image", R"("type":"file","file_id":"f")") == "source.type");
  CHECK(param_of_source("image", R"("type":"text","data":"x")") == "source.type");
  CHECK(param_of_source("image", R"("type":"url")") == "source.url");
  CHECK(param_of_source("image", R"("type":"base64","media_type":"image/png")") == "source.data");
  CHECK(param_of_source("image", R"("type":"base64","data":"AAAA")") == "source.media_type");
  CHECK(param_of_source("image", R"("type":"base64","media_type":"image/png","data":"A*")") ==
        "source.data");
  CHECK(param_of_source("image", R"("type":"base64","media_type":"image/bmp","data":"AAAA")") ==
        "source.data");
  CHECK(param_of_source("document", R"("type":"text","media_type":"text/plain")") == "source.data");
}

TEST_CASE("messages request: an image of more than 5 MiB is refused before it is sent") {
  const std::size_t bytes = 5 * 1024 * 1024;
  const auto block = [](std::size_t characters) {
    return R"({"type":"image","source":{"type":"base64","media_type":"image/png","data":")" +
           std::string(characters, 'A') + R"("}})";
  };
  CHECK_NOTHROW(user_blocks(block(bytes / 3 * 4)));
  CHECK(param_of_user(block(bytes / 3 * 4 + 8)) == "messages[0].content[0].source.data");
}

TEST_CASE("messages request: an image is no document, and a document is no image") {
  CHECK(param_of_user(R"({"type":"image",)" + pdf_source + "}") ==
        "messages[0].content[0].source.data");
  CHECK(param_of_user(R"({"type":"document",)" + png_source + "}") ==
        "messages[0].content[0].source.data");
}

TEST_CASE("messages request: an address is one of the web's") {
  for (const std::string url : {"file:///etc/passwd", "ftp://x.example/a", "a.png", ""}) {
    CAPTURE(url);
    CHECK(param_of_user(R"({"type":"image","source":{"type":"url","url":")" + url + R"("}})") ==
          "messages[0].content[0].source.url");
  }
}

TEST_CASE("messages request: tool calls are the assistant's, results the user's") {
  CHECK(outline_of(R"([{"role":"user","content":"a"},
                       {"role":"assistant","content":[
                         {"type":"text","text":"I look."},
                         {"type":"tool_use","id":"t1","name":"look","input":{"b":1,"a":[2]},
                          "cache_control":{"type":"ephemeral"}}]},
                       {"role":"user","content":[
                         {"type":"text","text":"so?"},
                         {"type":"tool_result","tool_use_id":"t1","content":"seen"}]}])") ==
        R"({} user: <a> assistant: <I look.> call(t1,look,{"b":1,"a":[2]}))"
        " user: result(t1 <seen>) <so?>");
  const std::string call = R"({"type":"tool_use","id":"t","name":"n","input":{}})";
  const std::string result = R"({"type":"tool_result","tool_use_id":"t"})";
  CHECK(param_of_user(call) == "messages[0].content[0].type");
  CHECK(param_of_assistant(result) == "messages[0].content[0].type");
}

TEST_CASE("messages request: a tool call needs an id and a name; its input becomes an object") {
  CHECK(param_of_assistant(R"({"type":"tool_use","name":"n","input":{}})") ==
        "messages[0].content[0].id");
  CHECK(param_of_assistant(R"({"type":"tool_use","id":"t","input":{}})") ==
        "messages[0].content[0].name");
  const auto input_of = [](const std::string& input) {
    return assistant_blocks(R"({"type":"tool_use","id":"t","name":"n")" + input + "}");
  };
  for (const std::string input : {"", R"(,"input":null)", R"(,"input":[])", R"(,"input":"{}")"}) {
    CAPTURE(input);
    CHECK(input_of(input).find("call(t,n,{})") != std::string::npos);
  }
  CHECK(input_of(R"(,"input":"{\"a\":1}")").find(R"(call(t,n,{"a":1}))") != std::string::npos);
}

TEST_CASE("messages request: a result is nothing, a text, or blocks; it may be a failure") {
  const auto read = [](const std::string& fields) {
    return user_blocks(R"({"type":"tool_result","tool_use_id":"t")" + fields + "}");
  };
  CHECK(read("") == "{} user: result(t)");
  CHECK(read(R"(,"content":null)") == "{} user: result(t)");
  CHECK(read(R"(,"content":[])") == "{} user: result(t)");
  CHECK(read(R"(,"content":"")") == "{} user: result(t)");
  CHECK(read(R"(,"content":[{"type":"text","text":""},{"type":"text","text":"x"}])") ==
        "{} user: result(t <x>)");
  CHECK(read(R"(,"content":"x","is_error":false)") == "{} user: result(t <x>)");
  CHECK(read(R"(,"content":"x","is_error":true)") == "{} user: failure(t <x>)");
  CHECK(read(R"(,"content":[{"type":"text","text":"x"},{"type":"image",)" + png_source +
             R"(},{"type":"document",)" + pdf_source + "}]") ==
        "{} user: result(t <x> image(image/png," + png + ") document(application/pdf," + pdf +
            "))");
  CHECK(read(R"(,"content":[{"type":"tool_reference","tool_name":"add"}])") ==
        "{} user: result(t <The tool 'add' is available.>)");
  CHECK(param_of_user(R"({"type":"tool_result"})") == "messages[0].content[0].tool_use_id");
  CHECK(param_of_user(R"({"type":"tool_result","tool_use_id":"t","is_error":"yes"})") ==
        "messages[0].content[0].is_error");
  CHECK(param_of_user(R"({"type":"tool_result","tool_use_id":"t","content":7})") ==
        "messages[0].content[0].content");
  CHECK(param_of_user(R"({"type":"tool_result","tool_use_id":"t","content":[
                          {"type":"text","text":"x"},{"type":"video"}]})") ==
        "messages[0].content[0].content[1].type");
}

TEST_CASE("messages request: signed thoughts come back as they were, unsigned ones are left out") {
  CHECK(assistant_blocks(R"({"type":"thinking","thinking":"hm","signature":"sig"},
                            {"type":"redacted_thinking","data":"cipher"},
                            {"type":"text","text":"c"})") ==
        "{} user: <a> assistant: thought(hm,sig,) thought(,,cipher) <c> user: <b>");
  CHECK(assistant_blocks(R"({"type":"thinking","thinking":"","signature":"sig"})") ==
        "{} user: <a> assistant: thought(,sig,) user: <b>");
  for (const std::string unsigned_one :
       {R"({"type":"thinking","thinking":"hm"})", R"({"type":"redacted_thinking"})",
        R"({"type":"thinking","thinking":"hm","signature":""})",
        R"({"type":"thinking","thinking":"hm","signature":null})"}) {
    CAPTURE(unsigned_one);
    CHECK(assistant_blocks(unsigned_one + R"(,{"type":"text","text":"c"})") ==
          "{} user: <a> assistant: <c> user: <b>");
  }
  for (const std::string kind : {"thinking", "redacted_thinking"}) {
    CHECK(param_of_user(R"({"type":")" + kind + R"(","data":"x"})") ==
          "messages[0].content[0].type");
  }
}

TEST_CASE(
    "messages request: tools that the API has run in an earlier answer are calls with results") {
  const std::string use = R"({"type":"server_tool_use","id":"s","name":"web_search",
                              "input":{"query":"x"}},)";
  const std::string call = R"(call(past_call_2,web_search,{"query":"x"}) user: )";
  CHECK(assistant_blocks(R"({"type":"text","text":"Let me see."},)" + use +
                         R"({"type":"web_search_tool_result","tool_use_id":"s","content":[
                             {"type":"web_search_result","url":"u","encrypted_content":"Eg"}]},
                            {"type":"text","text":"It is so."})") ==
        "{} user: <a> assistant: <Let me see.> " + call +
            R"(result(past_call_2 <[{"type":"web_search_result","url":"u"}]>))"
            " assistant: <It is so.> user: <b>");
  CHECK(assistant_blocks(R"({"type":"text","text":"c"},)" + use +
                         R"({"type":"web_search_tool_result","tool_use_id":"s",
                             "content":{"error_code":"too_many_requests"}})") ==
        "{} user: <a> assistant: <c> " + call +
            R"(failure(past_call_2 <{"error_code":"too_many_requests"}>) <b>)");
  CHECK(assistant_blocks(R"({"type":"mcp_tool_use","id":"m","name":"log","server_name":"git"},
                            {"type":"mcp_tool_result","tool_use_id":"m","is_error":true})") ==
        "{} user: <a> assistant: call(past_call_2,log,{}) user: failure(past_call_2) <b>");
}

TEST_CASE(
    "messages request: a call of the API's without its result, and the reverse, end nothing") {
  CHECK(
      assistant_blocks(R"({"type":"server_tool_use","id":"s","name":"web_search","input":{}},
                            {"type":"text","text":"c"})") ==
      "{} user: <a> assistant: <c> call(past_call_2,web_search,{}) user: result(past_call_2) <b>");
  CHECK(assistant_blocks(R"({"type":"web_fetch_tool_result","tool_use_id":"s","content":"w"},
                            {"type":"text","text":"c"})") ==
        "{} user: <a> assistant: call(past_call_2,web_fetch,{}) user: result(past_call_2 <\"w\">)"
        " assistant: <c> user: <b>");
}

TEST_CASE("messages request: an unknown block of an earlier answer is told, and named") {
  const auto request = parse_text(with_messages(R"([{"role":"user","content":"a"},
      {"role":"assistant","content":[{"type":"compaction","content":"So far."},
                                     {"type":"text","text":"c"}]},
      {"role":"user","content":"b"}])"));
  CHECK(
      outline(request) ==
      "{} user: <a> <<system-reminder>\nThe conversation holds an item of the type 'compaction' "
      "here: {\"type\":\"compaction\",\"content\":\"So far.\"}\n</system-reminder>> assistant: <c>"
      " user: <b>");
  CHECK(request.ignored_params == strings{"messages.compaction"});
}

TEST_CASE("messages request: an unknown block of an earlier question is told, and named") {
  const std::string block =
      R"({"type":"container_upload","file_id":"f","data":")" + std::string(100, 'A') + R"("})";
  const std::string asked =
      R"({"role":"user","content":[)" + block + R"(,{"type":"text","text":"a"}]})";
  const auto request = parse_text(with_messages(
      "[" + asked + R"(,{"role":"assistant","content":"c"},{"role":"user","content":"b"}])"));
  CHECK(
      outline(request) ==
      "{} user: <<system-reminder>\nThe conversation holds an item of the type 'container_upload' "
      "here: {\"type\":\"container_upload\",\"file_id\":\"f\"}\n</system-reminder>> <a>"
      " assistant: <c> user: <b>");
  CHECK(request.ignored_params == strings{"messages.container_upload"});
  CHECK(param_of_user(block) == "messages[0].content[0].type");  // it is what the answer is about
}

TEST_CASE("messages request: an unknown block of instructions is named") {
  const auto request = parse_text(with_messages(
      R"([{"role":"user","content":"a"},{"role":"system","content":[
          {"type":"tool_removal","tool":{}},{"type":"text","text":"s"}]},
          {"role":"system","content":[{"type":"tool_addition","tool":{}}]},
          {"role":"user","content":"b"}])"));
  CHECK(outline(request) == "{} user: <a> <<system-reminder>\ns\n</system-reminder>> <b>");
  CHECK(request.ignored_params == strings{"messages.tool_removal", "messages.tool_addition"});
}

TEST_CASE("messages request: citations of an earlier answer are named, where there are any") {
  const auto ignored = [](const std::string& citations) {
    return parse_text(with_messages(
                          R"([{"role":"user","content":"a"},{"role":"assistant","content":[
            {"type":"text","text":"c","citations":)" +
                          citations + R"(}]},{"role":"user","content":"b"}])"))
        .ignored_params;
  };
  CHECK(ignored(R"([{"cited_text":"x"}])") == strings{"messages.citations"});
  for (const std::string none : {"null", "[]"}) CHECK(ignored(none).empty());
}

TEST_CASE("messages request: tools keep name, description and schema, in order") {
  const auto request = with(R"("tools":[
      {"name":"b","description":"Looks","input_schema":{"type":"object","properties":{"z":{},
       "a":{}}},"cache_control":{"type":"ephemeral"},"strict":true},
      {"type":"custom","name":"a","input_schema":{}}])");
  REQUIRE(request.tools.size() == 2);
  CHECK(request.tools[0].name == "b");
  CHECK(request.tools[0].description == "Looks");
  CHECK(request.tools[0].schema.dump() == R"({"type":"object","properties":{"z":{},"a":{}}})");
  CHECK(request.tools[1].name == "a");
  CHECK(request.tools[1].description.empty());
  CHECK(request.tools[1].schema.dump() == R"({"type":"object"})");
  CHECK(request.ignored_params.empty());
}

TEST_CASE("messages request: what else a tool has is passed on where it can be, or named") {
  const auto of = [](const std::string& members) {
    return with(R"("tools":[{"name":"n","input_schema":{},)" + members + "}]");
  };
  const std::string kept =
      R"("strict":true,"eager_input_streaming":true,"input_examples":[{"a":1},{}])";
  CHECK(of(kept).tools[0].more.dump() == "{" + kept + "}");
  CHECK(of(kept).ignored_params.empty());
  CHECK(of(R"("strict":null,"defer_loading":false,"allowed_callers":["direct"])")
            .ignored_params.empty());
  const auto named = of(R"("defer_loading":true,"allowed_callers":["code_execution_20250825"])");
  CHECK(named.tools[0].more.empty());
  CHECK(named.ignored_params ==
        std::vector<std::string>{"tools.defer_loading", "tools.allowed_callers"});
  CHECK(with(R"("enable_tools":true,"tools":[{"name":"n","input_schema":{},"strict":true}])")
            .ignored_params == std::vector<std::string>{"tools.strict"});
  CHECK(param_of_fields(R"("tools":[{"name":"n","input_schema":{},"strict":"yes"}])") ==
        "tools[0].strict");
  CHECK(param_of_fields(R"("tools":[{"name":"n","input_schema":{},"input_examples":{}}])") ==
        "tools[0].input_examples");
}

TEST_CASE("messages request: a tool without a name or an object's schema is refused") {
  CHECK(param_of_fields(R"("tools":{})") == "tools");
  CHECK(param_of_fields(R"("tools":[{"input_schema":{}}])") == "tools[0].name");
  CHECK(param_of_fields(R"("tools":[{"name":"","input_schema":{}}])") == "tools[0].name");
  CHECK(param_of_fields(R"("tools":[{"name":")" + std::string(257, 'n') +
                        R"(","input_schema":{}}])") == "tools[0].name");
  CHECK(param_of_fields(R"("tools":[{"name":"n"}])") == "tools[0].input_schema");
  CHECK(param_of_fields(R"("tools":[{"name":"n","input_schema":[]}])") == "tools[0].input_schema");
  CHECK(param_of_fields(R"("tools":[{"name":"n","input_schema":{"type":"array"}}])") ==
        "tools[0].input_schema");
  CHECK(param_of_fields(R"("tools":[)" + tool + "," + tool + "]") == "tools[1]");
}

TEST_CASE("messages request: a tool or a role in another endpoint's form is told which") {
  const auto named = [](const std::string& body, const std::string& param,
                        const std::string& endpoint) {
    const auto error = refusal_of(body);
    CHECK(error.param == param);
    CHECK_MESSAGE(error.message.find(endpoint) != std::string::npos, error.message);
  };
  const auto tools = [](const std::string& second) {
    return with_fields(R"("tools":[)" + tool + "," + second + "]");
  };
  named(tools(R"({"type":"function","function":{"name":"n"}})"), "tools[1]",
        "/v1/chat/completions");
  named(tools(R"({"type":"function","name":"n","parameters":{}})"), "tools[1]", "/v1/responses");
  for (const std::string role : {"tool", "developer"}) {
    named(with_messages(R"([{"role":")" + role + R"(","content":"x"}])"), "messages[0].role",
          "/v1/chat/completions");
  }
}

TEST_CASE("messages request: tools that the API itself runs are refused by name") {
  for (const std::string type : {"web_search_20250305", "code_execution_20250825",
                                 "computer_20250124", "bash_20250124", "memory_20250818"}) {
    const auto error = refusal_of(
        with_fields(R"("tools":[)" + tool + R"(,{"type":")" + type + R"(","name":"web"}])"));
    CHECK(error.param == "tools[1].type");
    CHECK_MESSAGE(error.message.find("'" + type + "'") != std::string::npos, error.message);
  }
}

TEST_CASE("messages request: tool_choice is auto, any, none or a tool, one call or several") {
  const auto chosen = [](const std::string& choice) {
    return with(R"("tools":[)" + tool + R"(],"tool_choice":)" + choice).choice;
  };
  CHECK(chosen(R"({"type":"auto"})").kind == tool_choice::how::automatic);
  CHECK(chosen(R"({"type":"any"})").kind == tool_choice::how::any);
  CHECK(chosen(R"({"type":"none"})").kind == tool_choice::how::none);
  const auto named = chosen(R"({"type":"tool","name":"look"})");
  CHECK(named.kind == tool_choice::how::named);
  CHECK(named.name == "look");
  CHECK(named.parallel);
  CHECK_FALSE(chosen(R"({"type":"auto","disable_parallel_tool_use":true})").parallel);
  CHECK(chosen(R"({"type":"auto","disable_parallel_tool_use":false})").parallel);
  const auto param = [](const std::string& choice) {
    return param_of_fields(R"("tools":[)" + tool + R"(],"tool_choice":)" + choice);
  };
  CHECK(param("{}") == "tool_choice.type");
  CHECK(param(R"("auto")") == "tool_choice");
  CHECK(param(R"({"type":"required"})") == "tool_choice.type");
  CHECK(param(R"({"type":"tool"})") == "tool_choice.name");
  CHECK(param(R"({"type":"tool","name":"other"})") == "tool_choice");
  CHECK(param(R"({"type":"auto","disable_parallel_tool_use":1})") ==
        "tool_choice.disable_parallel_tool_use");
  CHECK(param_of_fields(R"("tool_choice":{"type":"any"})") == "tool_choice");
}

TEST_CASE("messages request: thinking is asked for by a budget, or adaptively by the effort") {
  CHECK(with(R"("thinking":{"type":"enabled","budget_tokens":2000})").thinking_tokens == 2000);
  CHECK(with(R"("thinking":{"type":"disabled"})").thinking_tokens == 0);
  CHECK(with(R"("thinking":{"type":"disabled"})").no_thinking);
  CHECK_FALSE(
      with(R"("output_config":{"effort":"none"})").no_thinking);  // it thinks on request only
  CHECK(with(R"("thinking":{"type":"adaptive"})").thinking_tokens ==
        thinking_budget(reasoning_effort::high));
  const auto low = with(R"("thinking":{"type":"adaptive"},"output_config":{"effort":"low"})");
  CHECK(low.thinking_tokens == thinking_budget(reasoning_effort::low));
  CHECK(low.effort == reasoning_effort::low);
  CHECK(low.thinking_field == std::string("thinking"));
  CHECK(with(R"("thinking":{"type":"adaptive","display":"summarized"})").ignored_params.empty());
  CHECK(with(R"("thinking":{"type":"adaptive","display":"omitted"})").ignored_params ==
        std::vector<std::string>{"thinking.display"});
  CHECK(param_of_fields(R"("thinking":{})") == "thinking.type");
  CHECK(param_of_fields(R"("thinking":true)") == "thinking");
  CHECK(param_of_fields(R"("thinking":{"type":"on"})") == "thinking.type");
  CHECK(param_of_fields(R"("thinking":{"type":"enabled"})") == "thinking.budget_tokens");
  CHECK(param_of_fields(R"("thinking":{"type":"enabled","budget_tokens":1023})") ==
        "thinking.budget_tokens");
  CHECK(with(R"("thinking":{"type":"enabled","budget_tokens":1024})").thinking_tokens == 1024);
}

TEST_CASE("messages request: an effort alone does not make the model think") {
  auto request = with(R"("output_config":{"effort":"max"})");
  CHECK(request.effort == reasoning_effort::max);
  CHECK(request.thinking_tokens == 0);
  apply_model_limits(request, {});
  CHECK_FALSE(request.thinks);
  CHECK(param_of_fields(R"("output_config":{"effort":"huge"})") == "output_config.effort");
  CHECK(param_of_fields(R"("output_config":7)") == "output_config");
}

TEST_CASE("messages request: the answer's format is a schema, told in either of two fields") {
  const std::string format = R"({"type":"json_schema","schema":{"properties":{"a":{}}}})";
  const auto newer = with(R"("output_config":{"format":)" + format + "}");
  REQUIRE(newer.schema);
  CHECK(newer.schema->dump() == R"({"properties":{"a":{}},"type":"object"})");
  CHECK(newer.schema_field == "output_config.format.schema");
  const auto older = with(R"("output_format":)" + format);
  REQUIRE(older.schema);
  CHECK(older.schema_field == "output_format.schema");
  CHECK_FALSE(with(R"("output_config":{},"output_format":null)").schema);
  CHECK(param_of_fields(R"("output_format":{"type":"json_object"})") == "output_format.type");
  CHECK(param_of_fields(R"("output_format":{"type":"json_schema"})") == "output_format.schema");
  CHECK(param_of_fields(R"("output_config":{"format":{"type":"json_schema","schema":
                           {"type":"array"}}})") == "output_config.format.schema");
}

TEST_CASE("messages request: sampling is read within its bounds") {
  const auto request = with(R"("temperature":0.5,"top_p":0.25,"top_k":40,
                               "stop_sequences":["a","b","c","d","e"])");
  CHECK(request.sampling.temperature == 0.5);
  CHECK(request.sampling.top_p == 0.25);
  CHECK(request.sampling.top_k == 40);
  CHECK(request.sampling.stop == strings{"a", "b", "c", "d", "e"});
  const std::vector<std::pair<std::string, std::string>> wrong = {
      {"temperature", "1.1"},  {"temperature", "-0.1"}, {"temperature", R"("1")"},
      {"top_p", "1.1"},        {"top_p", "-1"},         {"top_k", "-1"},
      {"top_k", "1.5"},        {"stop_sequences", "7"}, {"stop_sequences", R"("END")"},
      {"stream", R"("true")"}, {"model", R"("-x")"},    {"model", R"("a b")"},
      {"session_id", R"("")"}, {"model", "7"}};
  for (const auto& [field, value] : wrong) {
    const auto& tried = value;
    CAPTURE(tried);
    CHECK(param_of_fields("\"" + field + "\":" + value) == field);
  }
  CHECK(param_of_fields(R"("stop_sequences":["a",7])") == "stop_sequences[1]");
  for (const std::string most : {"0", "-1", "1.5", R"("9")"}) {
    CAPTURE(most);
    CHECK(param_of(R"({"model":"m","messages":[{"role":"user","content":"a"}],"max_tokens":)" +
                   most + "}") == "max_tokens");
  }
}

TEST_CASE("messages request: session_id, enable_tools and show_activity are this proxy's own") {
  const auto request = with(R"("session_id":"s 1","enable_tools":true,"show_activity":true,
                               "stream":true)");
  CHECK(request.session == "s 1");
  REQUIRE(request.agent);
  CHECK(request.agent->show_activity);
  CHECK(request.stream);
  CHECK_FALSE(with(R"("enable_tools":false,"show_activity":true)").agent);
  CHECK(param_of_fields(R"("enable_tools":1)") == "enable_tools");
}

TEST_CASE("messages request: what cannot be honoured is named, what asks for nothing is not") {
  const auto ignored = [](const std::string& fields) { return with(fields).ignored_params; };
  CHECK(ignored(R"("mcp_servers":[{}],"container":"c","context_management":{"edits":[1]},
                   "service_tier":"standard_only","inference_geo":"us","speed":"fast")") ==
        strings{"mcp_servers", "container", "context_management", "service_tier", "inference_geo",
                "speed"});
  CHECK(ignored(R"("service_tier":"auto","metadata":{"user_id":"u"},"cache_control":{},
                   "container":null,"betas":[],"mcp_servers":[],
                   "speed":"standard","context_management":{"edits":[]})")
            .empty());
}

TEST_CASE(
    "messages request: the longest lifetime of its cache marks counts, and shorter ones are "
    "named") {
  const auto kept = [](const std::string& fields) {
    const auto turn = with(fields);
    return std::pair(turn.cache_ttl, turn.ignored_params);
  };
  const std::string hour = R"("cache_control":{"type":"ephemeral","ttl":"1h"})";
  const std::string short_mark = R"("cache_control":{"type":"ephemeral"})";
  CHECK(kept(R"("max_tokens":9)") == std::pair(std::string(), strings{}));
  CHECK(kept(short_mark) == std::pair(std::string(), strings{}));
  CHECK(kept(hour) == std::pair(std::string("1h"), strings{}));
  CHECK(kept(R"("cache_control":{"ttl":"5m"})") == std::pair(std::string("5m"), strings{}));
  CHECK(kept(R"("system":[{"type":"text","text":"a",)" + hour + "}]," + short_mark) ==
        std::pair(std::string("1h"), strings{"cache_control.ttl"}));
  CHECK(kept(R"("tools":[{"name":"t","input_schema":{"type":"object"},)" + hour + "}]") ==
        std::pair(std::string("1h"), strings{}));
  CHECK(param_of_fields(R"("cache_control":{"ttl":"2h"})") == "cache_control.ttl");
}

// ---- counting -----------------------------------------------------------------------------------

TEST_CASE("token count: a request needs no max_tokens, but a model and messages") {
  const auto count = [](const std::string& body) {
    return anthropic_messages::parse_request(parse_body(body), true);
  };
  const auto request = count(R"({"model":"m","messages":[{"role":"user","content":"Hi"}]})");
  CHECK(outline(request) == "{} user: <Hi>");
  CHECK(error_of([&] { count(R"({"messages":[{"role":"user","content":"Hi"}]})"); }).param ==
        "model");
  CHECK(error_of([&] { count(R"({"model":"m"})"); }).param == "messages");
  CHECK(error_of([&] { count(R"({"model":"m","input":"Hi"})"); }).param == "input");
}

TEST_CASE("token count: the API is asked with all that the answer would be asked with") {
  const auto body = R"({"model":"m","max_tokens":9,"system":"Be brief.",
      "tools":[{"name":"look","description":"Looks","input_schema":{"type":"object"}}],
      "messages":[
        {"role":"user","content":[{"type":"text","text":"a"},
          {"type":"image",)" +
                    png_source + R"(},
          {"type":"document","title":"T","source":{"type":"url","url":"https://x.example/p"}},
          {"type":"document","source":{"type":"text","media_type":"text/plain","data":"w"}}]},
        {"role":"assistant","content":[
          {"type":"thinking","thinking":"hm","signature":"sig"},
          {"type":"redacted_thinking","data":"cipher"},
          {"type":"tool_use","id":"t","name":"look","input":{"a":1}}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"t","is_error":true,
          "content":[{"type":"text","text":"x"}]}]}]})";
  const test::json rendered = test::json::parse(
      anthropic_messages::make_count_request(parse_body(body), parse_text(body)).dump());
  auto expected = test::json::parse(body);
  expected.erase("max_tokens");
  CHECK(rendered == expected);
}

TEST_CASE("token count: what the API does not take there is left out") {
  const auto body = parse_body(with_fields(
      R"("stream":true,"temperature":0.5,"metadata":{},"session_id":"s","enable_tools":false,
         "stop_sequences":["a"],"system":null,"thinking":{"type":"adaptive"},
         "tool_choice":{"type":"auto"},"output_config":{"effort":"low"},"cache_control":{})"));
  const auto asked =
      anthropic_messages::make_count_request(body, anthropic_messages::parse_request(body, true));
  std::string names;
  for (const auto& [name, value] : asked.items()) names += name + " ";
  CHECK(names == "model messages tool_choice thinking output_config cache_control ");
}

TEST_CASE("token count: a history whose tools are not offered brings stand-ins for them") {
  const auto body =
      parse_body(R"({"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":true})");
  auto request = anthropic_messages::parse_request(body, true);
  CHECK(anthropic_messages::make_count_request(body, request).dump() ==
        R"({"model":"m","messages":[{"role":"user","content":"Hi"}]})");
  request.tools.push_back({"look", "", claude_openai::json::object({{"type", "object"}})});
  const auto asked = anthropic_messages::make_count_request(body, request);
  CHECK(asked["tools"][0]["name"] == "look");
}

TEST_CASE("token estimate: four bytes are a token, wherever they are said") {
  const auto tokens = [](const std::string& fields, const std::string& messages) {
    return anthropic_messages::estimate_tokens(parse_text(
        R"({"model":"m","max_tokens":9,)" + fields + R"("messages":[)" + messages + "]}"));
  };
  const std::string words(400, 'w');
  const auto text_block = R"({"type":"text","text":")" + words + R"("})";
  const auto plain = tokens("", R"({"role":"user","content":"a"})");
  CHECK(plain > 0);
  CHECK(plain < 10);
  const auto more = [&](const std::string& fields, const std::string& messages) {
    return tokens(fields, messages) - plain;
  };
  const std::string hi = R"({"role":"user","content":"a"})";
  CHECK(more("", R"({"role":"user","content":[{"type":"text","text":"a"},)" + text_block + "]}") ==
        100);
  CHECK(more(R"("system":")" + words + R"(",)", hi) == 100);
  CHECK(more(R"("tools":[{"name":"n","description":")" + words + R"(","input_schema":{}}],)", hi) >
        100);
  const auto assistant = [&](const std::string& blocks) {
    return more("", hi + R"(,{"role":"assistant","content":[)" + blocks + "]}," + hi);
  };
  const auto nothing = assistant(R"({"type":"thinking","thinking":"","signature":"s"})");
  CHECK(assistant(R"({"type":"thinking","thinking":")" + words + R"(","signature":"s"})") -
            nothing ==
        100);
  CHECK(assistant(R"({"type":"tool_use","id":"t","name":"n","input":{"a":")" + words + R"("}})") -
            nothing ==
        102);
  CHECK(
      more("", R"({"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":[)" +
                   text_block + R"(]},{"type":"text","text":"a"}]})") == 100);
  CHECK(more("", R"({"role":"user","content":[{"type":"document","source":{"type":"text",
                    "data":")" +
                     words + R"("}},{"type":"text","text":"a"}]})") == 100);
}

TEST_CASE("token estimate: an image costs the same whatever its bytes") {
  const auto tokens = [](const std::string& data) {
    return anthropic_messages::estimate_tokens(parse_text(with_messages(
        R"([{"role":"user","content":[{"type":"image","source":{"type":"base64",
            "media_type":"image/png","data":")" +
        data + R"("}}]}])")));
  };
  CHECK(tokens(png) >= 1600);
  CHECK(tokens(png) < 1700);
  CHECK(tokens("iVBORw0KGgo" + std::string(40001, 'A')) == tokens(png));
}

TEST_CASE("token estimate: a document costs more than an image, by its address most of all") {
  using claude_openai::media_part;
  media_part media{
      media_part::media_kind::document, "application/pdf", std::string(400, 'A'), {}, {}};
  CHECK(anthropic_messages::estimate_tokens(media) == 1600);
  media.data = std::string(400'000, 'A');
  CHECK(anthropic_messages::estimate_tokens(media) == 25'000);
  media.data.clear();
  media.url = "https://example.com/a.pdf";
  CHECK(anthropic_messages::estimate_tokens(media) == 25'000);
  media.kind = media_part::media_kind::image;
  CHECK(anthropic_messages::estimate_tokens(media) == 1600);
}
