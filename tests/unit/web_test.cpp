// Searches of the web, which the API makes itself: how each dialect asks for them and shows them.
#include <string>
#include <variant>
#include <vector>

#include "tests/dialects.hpp"

using namespace claude_openai;
using tree = test::json;  // compares without regard to the order of members

namespace {

reply_context searching() {
  reply_context context{"ID", 1700000000, "req_1"};
  context.web = true;
  return context;
}

using parser = parsed_request (*)(const claude_openai::json&, const reply_context&);

turn_request parsed(parser parse, const std::string& body) {
  return parse(parse_body(body), searching()).turns.front();
}

turn_request chat(const std::string& fields) {
  return parsed(openai_chat::parse,
                R"({"model":"m","messages":[{"role":"user","content":"a"}],)" + fields + "}");
}

turn_request responses(const std::string& fields) {
  return parsed(openai_responses::parse, R"({"model":"m","input":"a",)" + fields + "}");
}

turn_request messages(const std::string& blocks, const std::string& tools) {
  return parsed(anthropic_messages::parse,
                R"({"model":"m","max_tokens":9,"messages":[{"role":"user","content":"a"},
                    {"role":"assistant","content":[)" +
                    blocks + R"(]},{"role":"user","content":"b"}],"tools":[)" + tools + "]}");
}

const std::string own = R"({"type":"web_search_20250305","name":"web_search","max_uses":8})";
const std::string found = R"({"type":"web_search_tool_result","tool_use_id":"s",
                              "content":[{"type":"web_search_result","url":"u","title":"T"}]})";

/// A search, and a text that cites the page for its second piece.
std::vector<event> searched() {
  const tree page = tree::parse(R"({"url":"u","title":"T"})");
  return {
      turn_started{"m", {}},
      block_started{0, block_kind::search, "s", "web_search"},
      block_delta{0, R"({"query":"q"})"},
      block_stopped{0, {}},
      block_started{1, block_kind::found, {}, {}},
      block_delta{1, found},
      block_stopped{1, {}},
      block_started{2, block_kind::text, {}, {}},
      block_delta{2, "Grün: "},
      block_stopped{2, {}},
      block_started{3, block_kind::text, {}, {}},
      block_delta{3, "é 🐈"},
      block_stopped{3, {}, claude_openai::json::array({claude_openai::json::parse(page.dump())})},
      turn_stopped{}};
}

tree answered(parser parse, const std::string& body) {
  collector whole;
  for (const auto& one : searched()) whole.add(one);
  return tree::parse(parse(parse_body(body), searching()).reply->render({whole.result()}));
}

}  // namespace

TEST_CASE("web search: what clients of OpenAI's APIs ask for is a tool of the API's") {
  CHECK(dump(chat(R"("web_search_options":{})").web) == "[" + dump(parse_json(own)) + "]");
  const auto located = chat(R"("web_search_options":{"search_context_size":"low",
      "user_location":{"type":"approximate","approximate":{"city":"Bern"}}})");
  CHECK(dump(located.web[0]["user_location"]) == R"({"city":"Bern","type":"approximate"})");
  CHECK(located.ignored_params ==
        std::vector<std::string>{"web_search_options.search_context_size"});
  const auto bounded = responses(R"("max_tool_calls":2,"tools":[{"type":"web_search_preview",
      "filters":{"allowed_domains":["a"],"blocked_domains":[]}}])");
  CHECK(bounded.ignored_params.empty());
  CHECK(bounded.web[0]["max_uses"] == 2);
  CHECK(dump(bounded.web[0]["allowed_domains"]) == R"(["a"])");
  CHECK(!bounded.web[0].contains("blocked_domains"));
}

TEST_CASE("web search: it can be chosen, alone or among others, and has a name of its own") {
  const std::string both = R"("tools":[{"type":"web_search"},{"type":"function","name":"f"}],)";
  CHECK(responses(both + R"("tool_choice":{"type":"web_search"})").choice.name == "web_search");
  const auto allowed = responses(both + R"("tool_choice":{"type":"allowed_tools","mode":"auto",
      "tools":[{"type":"web_search"}]})");
  const auto offered = encode_offered_tools(allowed, tool_names(allowed.tools, ""));
  REQUIRE(offered.size() == 1);
  CHECK(offered[0]["name"] == "web_search");
  CHECK_THROWS_AS(responses(both + R"("tool_choice":{"type":"file_search"})"), api_error);
  CHECK_THROWS_AS(responses(R"("tools":[{"type":"web_search"},{"type":"web_search"}])"), api_error);
}

TEST_CASE("web search: an agent has a search of its own") {
  const auto request = responses(R"("enable_tools":true,"tools":[{"type":"web_search"}])");
  CHECK(request.web.empty());
  CHECK(request.ignored_params == std::vector<std::string>{"tools.web_search"});
}

TEST_CASE("web search: what it has found goes back to the API, and is no part of the trace") {
  const std::string blocks = R"({"type":"server_tool_use","id":"s","name":"web_search","input":{},
      "cache_control":{"type":"ephemeral"}},)" +
                             found + R"(,{"type":"text","text":"c","citations":[{"url":"u"}]})";
  const auto request = messages(blocks, own);
  CHECK(request.ignored_params.empty());
  const auto& parts = request.messages.at(1).parts;
  REQUIRE(parts.size() == 3);
  CHECK(!render_part(parts[0]).contains("cache_control"));
  CHECK(render_part(parts[1]) == parse_json(found));
  CHECK(render_part(parts[2])["citations"][0]["url"] == "u");
  CHECK(make_trace(request).words ==
        make_trace(messages(R"({"type":"text","text":"c"})", own)).words);
  // Without its result the API takes no search back.
  const auto open = messages(R"({"type":"server_tool_use","id":"s","name":"web_search"})", own);
  CHECK(std::holds_alternative<tool_call_part>(open.messages.at(1).parts.at(0)));
}

TEST_CASE("web search: an answer tells its sources in the words of the dialect") {
  const auto response = answered(openai_responses::parse,
                                 R"({"model":"m","input":"a","tools":[{"type":"web_search"}]})");
  REQUIRE(response["output"].size() == 2);
  CHECK(response["output"][0]["action"]["query"] == "q");
  const auto& part = response["output"][1]["content"][0];
  CHECK(part["text"] == "Grün: é 🐈");
  CHECK(part["annotations"] == tree::parse(R"([{"type":"url_citation","url":"u","title":"T",
      "start_index":6,"end_index":9}])"));
  const auto completion = answered(openai_chat::parse,
                                   R"({"model":"m","messages":[{"role":"user","content":"a"}],
                                     "web_search_options":{}})");
  CHECK(completion["choices"][0]["message"]["annotations"] ==
        tree::parse(R"([{"type":"url_citation","url_citation":{"url":"u","title":"T",
            "start_index":6,"end_index":9}}])"));
  const auto message =
      answered(anthropic_messages::parse, R"({"model":"m","max_tokens":9,"tools":[)" + own +
                                              R"(],"messages":[{"role":"user","content":"a"}]})");
  CHECK(message["content"][0]["type"] == "server_tool_use");
  CHECK(message["content"][1] == tree::parse(found));
}
