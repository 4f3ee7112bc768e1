// [15] cli_protocol: lines, errors' wordings and what is written to `claude`.
// The decoder of its turns is in turn_decoder_test.cpp.
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;
using strings = std::vector<std::string>;
using version = std::array<int, 3>;

namespace {

void take_lines(line_splitter& splitter, strings& lines) {
  while (const auto line = splitter.next()) lines.emplace_back(*line);
}

strings lines_of(const strings& pieces) {
  line_splitter splitter;
  strings lines;
  for (const auto& piece : pieces) {
    splitter.feed(piece);
    take_lines(splitter, lines);
  }
  return lines;
}

const tool_names no_tools;

turn_request with_system(const std::string& system) {
  turn_request request;
  request.system = system;
  return request;
}

message says(role author, const strings& texts) {
  message said;
  said.author = author;
  for (const auto& text : texts) said.parts.emplace_back(text_part{text});
  return said;
}

std::string encoded(const message& said, bool ask) {
  return encode_message(said, no_tools, {ask, "", 7, ""});
}

/// The texts of an encoded message's blocks.
strings sent_texts(const message& said, bool ask) {
  strings texts;
  const auto line = json::parse(encoded(said, ask));
  for (const auto& block : line["message"]["content"]) texts.push_back(string_of(block, "text"));
  return texts;
}

}  // namespace

// ---- line_splitter -----------------------------------------------------------------------------

TEST_CASE("lines: a line is what stands before each line feed") {
  CHECK(lines_of({"a\nb\n"}) == strings{"a", "b"});
  CHECK(lines_of({"\n\na\n"}) == strings{"", "", "a"});
  CHECK(lines_of({"a\r\n"}) == strings{"a\r"});
  CHECK(lines_of({std::string("a\0b\n", 4)}) == strings{std::string("a\0b", 3)});
}

TEST_CASE("lines: what has no line feed yet is no line") {
  CHECK(lines_of({"a"}).empty());
  CHECK(lines_of({""}).empty());
  CHECK(lines_of({"a\nb"}) == strings{"a"});
  CHECK(lines_of({"a", "b", "", "\n"}) == strings{"ab"});
}

TEST_CASE("lines: a line feed alone ends what came before") {
  CHECK(lines_of({"a", "\n", "\n", "b\nc", "\n"}) == strings{"a", "", "b", "c"});
}

TEST_CASE("lines: lines left unread are there after the next bytes") {
  line_splitter splitter;
  splitter.feed("a\nb\nc");
  CHECK(splitter.next() == "a");
  splitter.feed("d\ne");
  strings lines;
  take_lines(splitter, lines);
  CHECK(lines == strings{"b", "cd"});
  splitter.feed("\n");
  CHECK(splitter.next() == "e");
  CHECK_FALSE(splitter.next());
  CHECK_FALSE(splitter.next());
}

TEST_CASE("lines: however the bytes are cut, the lines are the same") {
  CAPTURE(test::seed());
  test::generator random(12);
  for (int i = 0; i < 500; ++i) {
    std::string all;
    strings expected;
    for (std::size_t n = random.below(8); n > 0; --n) {
      std::string line;
      for (const char c : random.bytes(40)) line += c == '\n' ? ' ' : c;
      expected.push_back(line);
      all += line + '\n';
    }
    all += "rest";
    line_splitter splitter;
    strings lines;
    for (std::size_t at = 0; at < all.size();) {
      const auto size = random.between(1, 9);
      splitter.feed(std::string_view(all).substr(at, size));
      at += size;
      if (random.chance(60)) take_lines(splitter, lines);
    }
    take_lines(splitter, lines);
    REQUIRE(lines == expected);
    splitter.feed("\n");
    REQUIRE(splitter.next() == "rest");
  }
}

TEST_CASE("lines: a line longer than the limit overflows, one of the limit does not") {
  line_splitter splitter(10);
  splitter.feed("0123456789");
  CHECK_FALSE(splitter.overflowed());
  splitter.feed("x");
  CHECK(splitter.overflowed());
}

TEST_CASE("lines: many short lines are no overflow once they are read") {
  line_splitter splitter(10);
  for (int i = 0; i < 100; ++i) {
    splitter.feed("0123456\n01");
    splitter.feed("234\n");
    strings lines;
    take_lines(splitter, lines);
    CHECK(lines == strings{"0123456", "01234"});
    CHECK_FALSE(splitter.overflowed());
  }
}

TEST_CASE("lines: a long line in small pieces takes time in proportion to its length") {
  line_splitter splitter;
  const std::string piece(64, 'x');
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 100'000; ++i) {
    splitter.feed(piece);
    REQUIRE_FALSE(splitter.next());
  }
  splitter.feed("\n");
  CHECK(splitter.next()->size() == 6'400'000);
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));
}

// ---- the API's errors in the CLI's words --------------------------------------------------------

TEST_CASE("upstream message: what the API said, out of every wording that the CLI has for it") {
  const std::vector<std::pair<std::string, std::string>> wordings = {
      {R"(API Error: 400 {"type":"error","error":{"type":"invalid_request_error",)"
       R"("message":"messages.0.content: is bad"},"request_id":"req_1"})",
       "messages.0.content: is bad"},
      {"API Error: 400 messages.0.content: is bad", "messages.0.content: is bad"},
      {R"(Failed to authenticate. API Error: 403 {"type":"error","error":{)"
       R"("type":"permission_error","message":"loopback forbids this"},"request_id":"req_2"})",
       "loopback forbids this"},
      {"Failed to authenticate. API Error: 403 loopback forbids this", "loopback forbids this"},
      {"API Error: Request rejected (429) · rate limit reached", "rate limit reached"},
      {"API Error: Unable to connect to API (ECONNRESET)", "Unable to connect to API (ECONNRESET)"},
      {"Invalid API key · Fix external API key", "Invalid API key"},
      {"There's an issue with the selected model (x). It may not exist or you may not have access "
       "to it. Run --model to pick a different model.",
       "There's an issue with the selected model (x). It may not exist or you may not have access "
       "to it."},
      {"API Error: Connection dropped (ECONNRESET). Check the gateway set in ANTHROPIC_BASE_URL, "
       "then try again.",
       "Connection dropped (ECONNRESET)."},
      {"Request too large (max 32MB). Try with a smaller file.",
       "Request too large (max 32MB). Try with a smaller file."},
      {"", ""}};
  for (const auto& each : wordings) {
    const auto& told = each.first;
    const auto& said = each.second;
    CAPTURE(told);
    CHECK(upstream_message(told) == said);
  }
}

TEST_CASE("upstream message: the CLI's advice about servers and gateways is none of the API's") {
  const std::string advice =
      ". This is a server-side issue, usually temporary — try again in a moment. If it persists, ";
  for (const std::string where :
       {"check status.claude.com.", "check your inference gateway (127.0.0.1:1)."}) {
    CHECK(upstream_message("API Error: 500 Internal server error" + advice + where) ==
          "Internal server error");
    CHECK(upstream_message("API Error: 529 Overloaded" + advice + where) == "Overloaded");
  }
}

TEST_CASE("upstream message: braces that are no error of the API's are left in the text") {
  for (const std::string told :
       {"API Error: 400 unexpected '{' in schema", R"(API Error: 400 {"type":"error"} is odd)",
        "API Error: 400 {}"}) {
    CAPTURE(told);
    CHECK(upstream_message(told) == std::string(told).substr(15));
  }
}

TEST_CASE("upstream message: a message may hold numbers and quotes of its own") {
  CHECK(upstream_message("API Error: 400 max_tokens: 500 > 400") == "max_tokens: 500 > 400");
  CHECK(upstream_message("API Error: 200000 tokens are too many") == "200000 tokens are too many");
  CHECK(upstream_message(R"(API Error: 400 {"error":{"message":"a \"b\" {c}"}})") ==
        R"(a "b" {c})");
}

TEST_CASE("upstream message: any text gives some text and never a crash") {
  CAPTURE(test::seed());
  test::generator random(13);
  const strings pieces = {"API Error: ",
                          "400 ",
                          "{",
                          "}",
                          "\"error\":",
                          "{\"message\":\"m\"}",
                          "· ",
                          "Request rejected (",
                          "429",
                          ") ",
                          "[[[[",
                          "\xFF",
                          " "};
  for (int i = 0; i < 5'000; ++i) {
    std::string told;
    for (std::size_t n = random.below(9); n > 0; --n) told += random.pick(pieces);
    CAPTURE(told);
    REQUIRE(upstream_message(told).size() <= told.size());
  }
  const auto bomb = "API Error: 400 {\"a\":" + std::string(500'000, '[');
  CHECK(upstream_message(bomb) == bomb.substr(15));
}

TEST_CASE("upstream status: the API's statuses keep their meaning for the client") {
  const std::vector<std::pair<int, int>> statuses = {
      {400, 400}, {401, 401}, {403, 403}, {404, 404}, {413, 413}, {422, 400},
      {429, 429}, {500, 500}, {503, 503}, {504, 504}, {529, 503}, {502, 500},
      {520, 500}, {0, 502},   {302, 502}, {418, 502}};
  for (const auto& each : statuses) {
    const auto& upstream = each.first;
    const auto& told = each.second;
    CAPTURE(upstream);
    CHECK(http_status(kind_of_upstream_status(upstream)) == told);
  }
}

TEST_CASE("upstream error: a conversation that is too long, in every wording, has one code") {
  const std::vector<std::pair<std::string, std::string>> wordings = {
      {"Prompt is too long", "prompt is too long"},
      {"Prompt is too long \xC2\xB7 this conversation is a single exchange and cannot be compacted",
       "prompt is too long \xC2\xB7 this conversation is a single exchange and cannot be "
       "compacted"},
      {"Prompt is too long \xC2\xB7 the request is ~250000 tokens (limit 200000) but this "
       "conversation is only ~34 tokens",
       "prompt is too long \xC2\xB7 the request is ~250000 tokens (limit 200000) but this "
       "conversation is only ~34 tokens"},
      {R"(API Error: 400 {"error":{"message":"prompt is too long: 7 tokens > 5 maximum"}})",
       "prompt is too long: 7 tokens > 5 maximum"},
      {R"(API Error: 400 {"error":{"message":"input length exceed context limit: 2 + 2 > 3"}})",
       "input length exceed context limit: 2 + 2 > 3"}};
  for (const auto& [told, message] : wordings) {
    for (const int status : {400, 413, 0}) {
      const auto error = upstream_error(status, told);
      CHECK(error.kind == error_kind::invalid_request);
      CHECK(error.code == "context_length_exceeded");
      CHECK(error.message == message);
    }
    CHECK(upstream_error(429, told).code.empty());
  }
  CHECK(upstream_error(400, "API Error: 400 max_tokens: 7 > 5").code.empty());
}

TEST_CASE("upstream error: a model that is not found is told beside names that are") {
  for (const std::string told :
       {"API Error: 404 model: gpt-4o", "No model gpt-4o. Run --model x"}) {
    const auto error = upstream_error(404, told);
    CHECK(error.code == "model_not_found");
    CHECK(error.message.find("gpt-4o. `sonnet`, `opus` and `haiku`") != std::string::npos);
  }
}

TEST_CASE("upstream error: whatever the API or the CLI says is the upstream's failure") {
  for (const int status : {0, 400, 401, 404, 408, 429, 500, 529}) {
    CHECK(upstream_error(status, "x").is_upstream);
  }
  CHECK(upstream_error(0, "Please run /login").is_upstream);
}

TEST_CASE("stop texts: a text is cut at the first of them, however it is cut into pieces") {
  const auto cut = [](const std::vector<std::string>& stops, const std::string& text,
                      std::size_t piece) {
    claude_openai::stop_cutter cutter(stops);
    std::string told;
    for (std::size_t at = 0; at < text.size() && cutter.found().empty(); at += piece) {
      told += cutter.feed(text.substr(at, piece));
      CHECK(text.compare(0, told.size(), told) == 0);
    }
    const auto found = cutter.found();
    return told + cutter.flush() + "|" + found;
  };
  const std::vector<std::tuple<std::vector<std::string>, std::string, std::string>> rows = {
      {{"\n\n"}, "a\nb\n\nc", "a\nb|\n\n"},
      {{"\n\n", " "}, "a\nb c\n\n", "a\nb| "},
      {{"\n\n"}, "a\n", "a\n|"},
      {{"\n \n", "\n\n"}, "a\n \n\nb", "a|\n \n"},
      {{"\n\n\n"}, "\n\na\n\n", "\n\na\n\n|"},
      {{"\n"}, "\n", "|\n"},
      {{}, "a\n\nb", "a\n\nb|"}};
  for (const auto& [stops, text, expected] : rows) {
    for (std::size_t piece = 1; piece <= text.size(); ++piece) {
      CHECK(cut(stops, text, piece) == expected);
    }
  }
}

TEST_CASE("upstream error: a missing login names the command that mends it, and is not retried") {
  const auto error = upstream_error(0, "Not logged in · Please run /login");
  CHECK(http_status(error.kind) == 503);
  CHECK(error.code == "not_logged_in");
  CHECK(error.message.find("claude auth login") != std::string::npos);
  CHECK(error.message.find("/login") == std::string::npos);
  CHECK(error.retry_is_futile);
}

TEST_CASE("upstream error: the proxy's own refused key is not taken for the client's") {
  const auto error = upstream_error(401, "Invalid API key · Fix external API key");
  CHECK(error.kind == error_kind::authentication);
  CHECK(error.code == "upstream_authentication_failed");
  CHECK(error.message.find("proxy's own") != std::string::npos);
  CHECK(error.message.find("Invalid API key") != std::string::npos);
}

TEST_CASE("upstream error: an unknown model has a code of its own") {
  CHECK(upstream_error(404, "There's an issue with the selected model (x).").code ==
        "model_not_found");
  CHECK(upstream_error(429, "API Error: Request rejected (429) · slow").code.empty());
  CHECK_FALSE(upstream_error(500, "").message.empty());
}

// ---- what is written ----------------------------------------------------------------------------

TEST_CASE("encode: initialize gives the system prompt, as one line") {
  CHECK(encode_initialize("1", with_system("Be \"brief\".\nAlways.")) ==
        R"({"type":"control_request","request_id":"1","request":{"subtype":"initialize",)"
        R"("systemPrompt":["Be \"brief\".\nAlways."]}})"
        "\n");
}

TEST_CASE(
    "encode: an answer's schema is told in the words of draft 7, and to the API in the newest") {
  struct example {
    std::string given;
    std::string validator;
    std::string api;  ///< empty: the same
  };
  const std::string a = R"({"type":"string"})";
  const std::vector<example> examples = {
      {R"({"prefixItems":[)" + a + R"(],"items":false})",
       R"({"items":[)" + a + R"(],"additionalItems":false})",
       R"({"prefixItems":[)" + a + R"(],"items":false})"},
      {R"({"prefixItems":[true],"items":)" + a + "}",
       R"({"items":[true],"additionalItems":)" + a + "}",
       R"({"prefixItems":[true],"items":)" + a + "}"},
      {R"({"items":[true],"additionalItems":false})", R"({"items":[true],"additionalItems":false})",
       R"({"prefixItems":[true],"items":false})"},
      {R"({"p":1,"items":)" + a + "}", R"({"items":)" + a + "}", ""},
      {R"({"items":{"type":"string","enum":["a"],"nullable":true}})",
       R"({"items":{"type":["string","null"],"enum":["a",null]}})", ""},
      {R"({"items":{"$ref":"#/$defs/x","nullable":true}})",
       R"({"items":{"anyOf":[{"$ref":"#/$defs/x"},{"type":"null"}]}})", ""},
      {R"({"type":"object","nullable":true})", R"({"type":"object"})", ""},
      {R"({"$id":"https://x/r","not":{"$ref":"https://x/r"}})", R"({"not":{"$ref":"#"}})", ""},
      {R"({"not":{"$ref":"#n"},"if":{"$anchor":"n","else":{"$dynamicRef":"#n"}}})",
       R"({"not":{"$ref":"#/$defs/ref_0"},"if":{"else":{"$ref":"#/$defs/ref_0"}},)"
       R"("$defs":{"ref_0":{"else":{"$ref":"#/$defs/ref_0"}}}})",
       ""},
      {R"({"properties":{"t":{"prefixItems":[true],"items":)" + a +
           R"(},"p":{"$ref":"#/properties/t/items"},"q":{"$ref":"#/properties/t/prefixItems/0"}}})",
       R"({"properties":{"t":{"items":[true],"additionalItems":)" + a +
           R"(},"p":{"$ref":"#/$defs/ref_0"},"q":{"$ref":"#/$defs/ref_1"}},)"
           R"("$defs":{"ref_0":{"type":"string"},"ref_1":true}})",
       R"({"properties":{"t":{"prefixItems":[true],"items":)" + a +
           R"(},"p":{"$ref":"#/$defs/ref_0"},"q":{"$ref":"#/$defs/ref_1"}},)"
           R"("$defs":{"ref_0":{"type":"string"},"ref_1":true}})"},
      {R"({"not":{"$ref":"#/$defs/a","minLength":2,"allOf":[true]},)"
       R"("if":{"$ref":"#/no/such/place"}})",
       R"({"not":{"minLength":2,"allOf":[true,{"$ref":"#/$defs/a"}]},)"
       R"("if":{"$ref":"#/no/such/place"}})",
       ""},
      {R"({"items":{"$ref":"#/$defs/x","minLength":2,"type":"string","nullable":true}})",
       R"({"items":{"anyOf":[{"minLength":2,"type":"string","allOf":[{"$ref":"#/$defs/x"}]},)"
       R"({"type":"null"}]}})",
       ""},
      {R"({"dependentRequired":{"a":["b"]},"dependentSchemas":{"c":{"nullable":false}}})",
       R"({"allOf":[{"if":{"required":["a"]},"then":{"required":["b"]}},)"
       R"({"if":{"required":["c"]},"then":{}}]})",
       ""},
      {R"({"contains":true,"minContains":0})", R"-({"description":"(minContains: 0)"})-", ""},
      {R"({"contains":true,"minContains":2,"description":"D"})",
       R"-({"contains":true,"description":"D (minContains: 2)"})-", ""},
      {R"({"format":"date","description":"D"})", R"-({"description":"D (format: date)"})-", ""}};
  for (const auto& each : examples) {
    CAPTURE(each.given);
    const auto given = json::parse(each.given);
    CHECK(dump(encode_schema(given)) == each.validator);
    CHECK(dump(encode_schema(given, true)) == (each.api.empty() ? each.validator : each.api));
  }
  // Whatever a client calls a schema, nothing but JSON comes of it.
  for (const std::string odd :
       {R"({"allOf":{},"dependencies":{"a":1}})",
        R"({"$defs":[],"not":{"$ref":"#n"},"if":{"$anchor":"n"}})",
        R"({"not":{"allOf":{},"$ref":"#/not/allOf/"},"if":{"$ref":"#/a~2/b/-"}})",
        R"({"items":{"type":"string","enum":"a","nullable":true}})", R"({"dependencies":"a"})"}) {
    CAPTURE(odd);
    CHECK_NOTHROW(encode_schema(json::parse(odd)));
  }
}

TEST_CASE("encode: a probe changes no settings") {
  CHECK(encode_probe("p") ==
        R"({"type":"control_request","request_id":"p","request":{"subtype":"apply_flag_settings",)"
        R"("settings":{}}})"
        "\n");
}

TEST_CASE("version: what `claude --version` prints is read") {
  CHECK(parse_version("2.1.330 (Claude Code)\n") == version{2, 1, 330});
  CHECK(parse_version("2.1.120") == version{2, 1, 120});
  CHECK(parse_version("  2.1.120\r\n") == version{2, 1, 120});
  CHECK(parse_version("2.1.330-beta (Claude Code)") == version{2, 1, 330});
  CHECK(parse_version("10.0.0 (Claude Code)") == version{10, 0, 0});
}

TEST_CASE("version: what is no version is none") {
  for (const std::string said :
       {"", "\n", "2", "2.1", "v2.1.3", "Claude Code 2.1.330", "a.b.c", "2.1.x", "-1.2.3",
        "2.1.99999999999", "command not found: claude", "error: 2.1.3"}) {
    CAPTURE(said);
    CHECK_FALSE(parse_version(said));
  }
}

TEST_CASE("encode: a blank text is left out beside what is none") {
  const auto contents = [](const message& said) {
    return json::parse(encoded(said, true))["message"]["content"];
  };
  CHECK(contents(says(role::assistant, {"\n\n", "Hi", " "})) ==
        contents(says(role::assistant, {"Hi"})));
  CHECK(contents(says(role::user, {" "})).size() == 1);
}

TEST_CASE("encode: a message is taken back by its uuid") {
  CHECK(encode_rewind("r", "u-1") ==
        R"({"type":"control_request","request_id":"r","request":{"subtype":"rewind_conversation",)"
        R"("target_message_uuid":"u-1"}})"
        "\n");
}

TEST_CASE("encode: an interrupt names nothing but itself") {
  CHECK(encode_interrupt("i") ==
        R"({"type":"control_request","request_id":"i","request":{"subtype":"interrupt"}})"
        "\n");
}

TEST_CASE("encode: a user's message bears its uuid, an assistant's its number and model") {
  const auto line_of = [](role author, bool ask) {
    return json::parse(encode_message(says(author, {"Hi"}), no_tools, {ask, "u-1", 42, "model-9"}));
  };
  for (const bool ask : {true, false}) {
    CAPTURE(ask);
    const auto line = line_of(role::user, ask);
    CHECK(line["uuid"] == "u-1");
    CHECK(line.contains("shouldQuery") == !ask);
    CHECK_FALSE(line["message"].contains("id"));
    CHECK_FALSE(line["message"].contains("model"));
  }
  const auto past = line_of(role::assistant, false);
  CHECK_FALSE(past.contains("uuid"));
  CHECK_FALSE(past.contains("shouldQuery"));
  CHECK(past["message"]["id"] == "msg_past_42");
  CHECK(past["message"]["model"] == "model-9");
}

TEST_CASE("encode: the live user message") {
  CHECK(encoded(says(role::user, {"Hi", "you"}), true) ==
        R"({"type":"user","message":{"role":"user","content":[{"type":"text","text":"Hi"},)"
        R"({"type":"text","text":"you"}]},"parent_tool_use_id":null,"session_id":""})"
        "\n");
}

TEST_CASE("encode: a past user message asks nothing") {
  CHECK(encoded(says(role::user, {"Hi"}), false) ==
        R"({"type":"user","message":{"role":"user","content":[{"type":"text","text":"Hi"}]},)"
        R"("parent_tool_use_id":null,"session_id":"","shouldQuery":false})"
        "\n");
}

TEST_CASE("encode: a past assistant message") {
  CHECK(encoded(says(role::assistant, {"Hello"}), false) ==
        R"({"type":"assistant","message":{"role":"assistant","content":[)"
        R"({"type":"text","text":"Hello"}],"id":"msg_past_7"},)"
        R"("parent_tool_use_id":null,"session_id":""})"
        "\n");
}

TEST_CASE("encode: tool calls and results are the Messages API's blocks") {
  message call;
  call.author = role::assistant;
  call.parts.emplace_back(tool_call_part{"c1", "look", json::parse(R"({"b":1,"a":2})")});
  CHECK(encoded(call, false) ==
        R"({"type":"assistant","message":{"role":"assistant","content":[)"
        R"({"type":"tool_use","id":"c1","name":"look","input":{"b":1,"a":2}}],)"
        R"("id":"msg_past_7"},)"
        R"("parent_tool_use_id":null,"session_id":""})"
        "\n");
  message result;
  result.parts.emplace_back(tool_result_part{"c1", {text_part{"sunny"}}});
  result.parts.emplace_back(text_part{"So?"});
  CHECK(encoded(result, true) ==
        R"({"type":"user","message":{"role":"user","content":[)"
        R"({"type":"tool_result","tool_use_id":"c1","content":[{"type":"text","text":"sunny"}]},)"
        R"({"type":"text","text":"So?"}]},"parent_tool_use_id":null,"session_id":""})"
        "\n");
}

TEST_CASE("encode: whatever is said, it is one line of JSON that says the same") {
  CAPTURE(test::seed());
  test::generator random(14);
  for (int i = 0; i < 2'000; ++i) {
    const auto words = "x" + random.words(10);
    const auto author = random.chance(50) ? role::user : role::assistant;
    const auto line = encoded(says(author, {words}), random.chance(50));
    CAPTURE(line);
    REQUIRE(line.find('\n') == line.size() - 1);
    REQUIRE(json::parse(line)["message"]["content"][0]["text"] == words);
  }
}

TEST_CASE("encode: bytes that are no UTF-8 do not throw") {
  CHECK(sent_texts(says(role::user, {"a\xFF"}), true) == strings{"a\xEF\xBF\xBD"});
  CHECK(json::parse(encode_initialize("1", with_system("\xC3")))["request"]["systemPrompt"][0] ==
        "\xEF\xBF\xBD");
}

// ---- commands of Claude Code's ------------------------------------------------------------------

TEST_CASE("shield: a user's text that begins with a slash is not a command, live or replayed") {
  for (const bool ask : {true, false}) {
    CAPTURE(ask);
    CHECK(sent_texts(says(role::user, {"/clear"}), ask) == strings{" /clear"});
    CHECK(sent_texts(says(role::user, {"/"}), ask) == strings{" /"});
    CHECK(sent_texts(says(role::user, {"//x"}), ask) == strings{" //x"});
  }
}

TEST_CASE("shield: only the last text is looked at, wherever it stands") {
  CHECK(sent_texts(says(role::user, {"/a", "/b"}), true) == strings{"/a", " /b"});
  CHECK(sent_texts(says(role::user, {"/a", "b"}), true) == strings{"/a", "b"});
  message with_result = says(role::user, {"/a", "/b"});
  with_result.parts.emplace_back(tool_result_part{"c1", {text_part{"/c"}}});
  const auto line = json::parse(encoded(with_result, true));
  const auto& content = line["message"]["content"];
  CHECK(content[0]["text"] == "/a");
  CHECK(content[1]["text"] == " /b");
  CHECK(content[2]["content"][0]["text"] == "/c");
}

TEST_CASE("shield: any other text is left as it is") {
  for (const std::string words :
       {"", "a/b", " /clear", "\n/clear", "\\clear", "a\n/clear", "／clear"}) {
    CAPTURE(words);
    CHECK(sent_texts(says(role::user, {words}), true) == strings{words});
  }
}

TEST_CASE("shield: the assistant's texts are no commands and stay") {
  CHECK(sent_texts(says(role::assistant, {"/clear"}), false) == strings{"/clear"});
}
