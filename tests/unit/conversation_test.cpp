// [06] conversation: one request in neutral form, whatever API it came by.
#include <map>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tests/support.hpp"

using claude_openai::continue_prompt;
using claude_openai::json;
using claude_openai::message;
using claude_openai::opening_prompt;
using claude_openai::role;
using claude_openai::text_part;
using claude_openai::tool_call_part;
using claude_openai::tool_result_part;

namespace {

message says(role author, const std::vector<std::string>& texts) {
  message said;
  said.author = author;
  for (const auto& text : texts) said.parts.emplace_back(text_part{text});
  return said;
}

message user(const std::vector<std::string>& texts) { return says(role::user, texts); }
message assistant(const std::vector<std::string>& texts) { return says(role::assistant, texts); }

/// `u[a|b] a[c]`: who says what, part by part.
std::string outline(const std::vector<message>& messages) {
  std::string all;
  for (const auto& said : messages) {
    if (!all.empty()) all += ' ';
    all += said.author == role::user ? "u[" : "a[";
    for (std::size_t i = 0; i < said.parts.size(); ++i) {
      if (i > 0) all += '|';
      const auto& part = said.parts[i];
      if (const auto* text = std::get_if<text_part>(&part)) all += text->text;
      if (const auto* call = std::get_if<tool_call_part>(&part)) all += "call:" + call->id;
      if (const auto* result = std::get_if<tool_result_part>(&part)) {
        all += "result:" + result->call_id;
      }
    }
    all += ']';
  }
  return all;
}

std::string normalized(std::vector<message> messages) {
  claude_openai::normalize(messages);
  return outline(messages);
}

const std::string more(continue_prompt);
const std::string opening(opening_prompt);

std::string param_of_model(const std::string& text) {
  const json model = json::parse(text);
  return test::error_of([&] { parse_model(claude_openai::reader(model, "model")); }).param;
}

}  // namespace

TEST_CASE("normalize: a conversation that alternates and ends with the user is left as it is") {
  CHECK(normalized({user({"a"})}) == "u[a]");
  CHECK(normalized({user({"a"}), assistant({"b"}), user({"c"})}) == "u[a] a[b] u[c]");
}

TEST_CASE("normalize: neighbours of one role are joined and keep the order of their parts") {
  CHECK(normalized({user({"a", "b"}), user({"c"}), user({"d"})}) == "u[a|b|c|d]");
  CHECK(normalized({user({"a"}), assistant({"b"}), assistant({"c"}), user({"d"})}) ==
        "u[a] a[b|c] u[d]");
}

TEST_CASE("normalize: empty messages are dropped, and what they parted is joined") {
  CHECK(normalized({user({"a"}), assistant({}), user({"b"})}) == "u[a|b]");
  CHECK(normalized({user({}), user({"a"}), user({})}) == "u[a]");
  CHECK(normalized({user({"a"}), assistant({"b"}), user({}), assistant({"c"}), user({"d"})}) ==
        "u[a] a[b|c] u[d]");
}

TEST_CASE("normalize: where the user does not speak last, the user asks to go on") {
  CHECK(normalized({user({"a"}), assistant({"b"})}) == "u[a] a[b] u[" + more + "]");
  CHECK(normalized({user({"a"}), assistant({"b"}), user({})}) == "u[a] a[b] u[" + more + "]");
  CHECK(normalized({}) == "u[" + more + "]");
  CHECK(normalized({user({})}) == "u[" + more + "]");
}

TEST_CASE("normalize: where the assistant speaks first, a word of the user's is put before it") {
  CHECK(normalized({assistant({"b"}), user({"c"})}) == "u[" + opening + "] a[b] u[c]");
  CHECK(normalized({user({}), assistant({"b"}), assistant({"c"}), user({"d"})}) ==
        "u[" + opening + "] a[b|c] u[d]");
  CHECK(normalized({assistant({"b"})}) == "u[" + opening + "] a[b] u[" + more + "]");
  CHECK_FALSE(opening.empty());
}

TEST_CASE("normalize: tool calls and their results are parts like any other") {
  message call = assistant({"Let me look."});
  call.parts.emplace_back(tool_call_part{"1", "look", json::object()});
  message first;
  first.parts.emplace_back(tool_result_part{"1", "sunny"});
  message second;
  second.parts.emplace_back(tool_result_part{"2", "warm"});
  CHECK(normalized({user({"a"}), call, first, second, user({"and?"})}) ==
        "u[a] a[Let me look.|call:1] u[result:1|result:2|and?]");
  CHECK(normalized({user({"a"}), call, first}) == "u[a] a[Let me look.|call:1] u[result:1]");
}

TEST_CASE(
    "normalize: whatever comes in, roles alternate, nobody is silent, the user opens and ends") {
  CAPTURE(test::seed());
  test::generator random(6);
  for (int i = 0; i < 3'000; ++i) {
    std::vector<message> messages;
    std::string words;
    for (std::size_t n = random.below(7); n > 0; --n) {
      std::vector<std::string> texts;
      for (std::size_t k = random.below(3); k > 0; --k) texts.push_back(std::to_string(i));
      for (const auto& text : texts) words += text;
      messages.push_back(random.chance(50) ? user(texts) : assistant(texts));
    }
    claude_openai::normalize(messages);
    CAPTURE(outline(messages));
    REQUIRE_FALSE(messages.empty());
    REQUIRE(messages.front().author == role::user);
    REQUIRE(messages.back().author == role::user);
    std::string kept;
    for (std::size_t m = 0; m < messages.size(); ++m) {
      REQUIRE_FALSE(messages[m].parts.empty());
      if (m > 0) REQUIRE(messages[m].author != messages[m - 1].author);
      for (const auto& part : messages[m].parts) {
        const auto& text = std::get<text_part>(part).text;
        if (text != more && text != opening) kept += text;
      }
    }
    REQUIRE(kept == words);
  }
}

// ---- traces ------------------------------------------------------------------------------------

TEST_CASE(
    "trace: who asks, whom, with what instructions and after what words, all make it differ") {
  std::set<std::string> traces;
  std::size_t requests = 0;
  for (const std::string client : {"", "a", "ab"}) {
    for (const std::string model : {"", "a", "b"}) {
      for (const std::string system : {"", "a", "1:a"}) {
        for (const std::string words : {"", "a", "b", "u1:a", "a\n", " a"}) {
          claude_openai::turn_request request;
          request.client = client;
          request.model = model;
          request.system = system;
          request.messages = {user({words})};
          traces.insert(make_trace(request).words);
          ++requests;
        }
      }
    }
  }
  CHECK(traces.size() == requests);
}

TEST_CASE("trace: no words can look like a border between parts or messages") {
  const std::vector<std::vector<message>> conversations = {
      {user({"a", "b"})},
      {user({"ab"})},
      {user({"au1:b"})},
      {user({"a"}), assistant({"b"})},
      {user({"a"}), assistant({"b"}), user({"c"})},
      {user({"a"}), assistant({"bu1:c"})},
      {user({"a"}), assistant({""}), user({"b"})},
      {assistant({"a"}), user({"b"})},
      {user({"a"}), assistant({"b"}), user({"c"}), assistant({"d"})}};
  std::set<std::string> traces;
  for (const auto& messages : conversations) {
    claude_openai::turn_request request;
    request.messages = messages;
    traces.insert(make_trace(request).words);
  }
  CHECK(traces.size() == conversations.size());
}

TEST_CASE("trace: two conversations that differ never have one trace") {
  CAPTURE(test::seed());
  test::generator random(19);
  const std::vector<std::string> pieces = {"a", "u", ":", "1", "u1:a", "u:a", "a1:u", "2", "c0:"};
  std::map<std::string, std::string> known;
  for (int i = 0; i < 20'000; ++i) {
    claude_openai::turn_request request;
    json told = json::array();
    for (std::size_t n = random.between(1, 3); n > 0; --n) {
      std::vector<std::string> texts;
      for (std::size_t k = random.between(1, 2); k > 0; --k) {
        texts.push_back(random.pick(pieces));
        if (random.chance(40)) texts.back() += random.pick(pieces);
      }
      const bool from_user = random.chance(60);
      if (!from_user) texts = {texts.front() + texts.back()};
      request.messages.push_back(from_user ? user(texts) : assistant(texts));
      told.push_back(json::array({from_user, texts}));
    }
    // Two messages of one role in a row do not come out of `normalize`.
    bool alternates = true;
    for (std::size_t m = 1; m < request.messages.size(); ++m) {
      alternates = alternates && request.messages[m].author != request.messages[m - 1].author;
    }
    if (!alternates) continue;
    const auto words = make_trace(request).words;
    const auto told_as = claude_openai::dump(told);
    const auto twin = known.emplace(words, told_as).first->second;
    REQUIRE(twin == told_as);
  }
  CHECK(known.size() > 2'000);
}

TEST_CASE("trace: tool calls and results are in it, with ids, names, input and text") {
  const auto trace_of = [](const std::string& id, const std::string& name, const std::string& input,
                           const std::string& result) {
    claude_openai::turn_request request;
    message call = assistant({});
    call.parts.emplace_back(tool_call_part{id, name, json::parse(input)});
    message answer;
    answer.parts.emplace_back(tool_result_part{id, result});
    request.messages = {user({"q"}), call, answer};
    return make_trace(request).words;
  };
  const auto base = trace_of("1", "f", "{}", "r");
  CHECK(base == trace_of("1", "f", "{ }", "r"));
  CHECK(base != trace_of("2", "f", "{}", "r"));
  CHECK(base != trace_of("1", "g", "{}", "r"));
  CHECK(base != trace_of("1", "f", "{\"a\":1}", "r"));
  CHECK(base != trace_of("1", "f", "{}", "s"));
}

TEST_CASE("trace: an assistant's texts count as one, without blanks at the ends") {
  const auto trace_of = [](const message& said) {
    claude_openai::conversation_trace trace;
    append_message(trace, said);
    return trace.words;
  };
  CHECK(trace_of(assistant({"Hello", " you"})) == trace_of(assistant({"Hello you"})));
  CHECK(trace_of(assistant({"\n Hello you \t"})) == trace_of(assistant({"Hello you"})));
  CHECK(trace_of(assistant({"Hello  you"})) != trace_of(assistant({"Hello you"})));
  CHECK(trace_of(user({"Hello", " you"})) != trace_of(user({"Hello you"})));
  CHECK(trace_of(user({"Hello "})) != trace_of(user({"Hello"})));
}

TEST_CASE("trace: a longer conversation begins with the shorter one, up to each reply") {
  claude_openai::turn_request request;
  request.client = "k";
  request.messages = {user({"a"})};
  const auto first = make_trace(request);
  CHECK(first.replies.empty());
  auto answered = first;
  append_message(answered, assistant({"b"}));
  REQUIRE(answered.replies == std::vector<std::size_t>{answered.words.size()});
  request.messages = {user({"a"}), assistant({"b"}), user({"c"}), assistant({"d"}), user({"e"})};
  const auto later = make_trace(request);
  REQUIRE(later.replies.size() == 2);
  CHECK(later.replies[0] == answered.words.size());
  CHECK(later.words.substr(0, later.replies[0]) == answered.words);
  CHECK(later.words.substr(0, first.words.size()) == first.words);
}

TEST_CASE("session id: free text of 1 to 256 characters, none of them a control character") {
  const auto parsed = [](const json& id) {
    return parse_session_id(claude_openai::reader(id, "session_id"));
  };
  for (const std::string id : {"a", "my chat", "é😀", "../../etc/passwd", "-", "\"quoted\""}) {
    CAPTURE(id);
    CHECK(parsed(id) == id);
  }
  CHECK(parsed(std::string(256, 'x')).size() == 256);
  std::string accents;
  for (int i = 0; i < 256; ++i) accents += "é";
  CHECK(parsed(accents) == accents);
  for (const json& wrong :
       {json(""), json(std::string(257, 'x')), json(accents + "é"), json("a\nb"), json("a\tb"),
        json("a\x7f"), json(std::string("a\0b", 3)), json(1), json(true), json::array()}) {
    CAPTURE(claude_openai::dump(wrong));
    CHECK(test::error_of([&] { parsed(wrong); }).param == "session_id");
  }
}

// ---- models ------------------------------------------------------------------------------------

TEST_CASE("model: ids of all vendors' shapes are taken") {
  for (const std::string id :
       {"sonnet", "claude-sonnet-4-5-20250929", "sonnet[1m]", "us.anthropic.claude-opus-4-5-v1:0",
        "arn:aws:bedrock:us-east-1:123:inference-profile/x", "claude-opus-4-5@20251101",
        "vendor/model-1.5", "gpt-4o", "a", "_-", "~!$"}) {
    CAPTURE(id);
    const json model = id;
    CHECK(parse_model(claude_openai::reader(model, "model")) == id);
  }
}

TEST_CASE("model: an id that looks like a flag, or that no model has, is refused with its param") {
  for (const std::string wrong :
       {R"("-")", R"("--dangerously-skip-permissions")", R"("-p")", R"(" sonnet")", R"("son net")",
        R"("sonnet\n")", R"("a\tb")", R"("a\u0000b")", R"("a\u007fb")", R"("modèle")", "1", "true",
        R"(["sonnet"])", R"({})"}) {
    CAPTURE(wrong);
    CHECK(param_of_model(wrong) == "model");
  }
}

TEST_CASE("model: an id has at most 256 characters") {
  const json longest = std::string(256, 'a');
  CHECK(parse_model(claude_openai::reader(longest, "model")).size() == 256);
  CHECK(param_of_model('"' + std::string(257, 'a') + '"') == "model");
}
