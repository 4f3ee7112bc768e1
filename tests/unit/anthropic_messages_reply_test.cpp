// [11] anthropic_messages: answers, whole and as a stream; errors; and pages of models [14].
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/dialects.hpp"

using namespace claude_openai;
using tree = test::json;  // compares without regard to the order of members
using test::script;

namespace {

std::unique_ptr<reply> make_writer() {
  return std::make_unique<anthropic_messages::messages_reply>(reply_context{"ID", 1, "req_1"});
}

std::vector<test::named_event> events_of(const test::events& told) {
  std::string problem;
  auto all = test::named_events(test::written(*make_writer(), told), problem);
  CHECK_MESSAGE(problem.empty(), problem);
  return all;
}

std::string names_of(const test::events& told) { return test::names_of(events_of(told)); }

/// The message as a client gathers it from the stream; checks the rules of the stream.
tree streamed(const test::events& told) {
  const test::messages_stream_reader got(test::written(*make_writer(), told));
  CHECK_MESSAGE(got.problem.empty(), got.problem);
  return got.message;
}

tree whole(const test::events& told) { return test::rendered(*make_writer(), told); }

const tree usage_at_end = {
    {"input_tokens", 11},
    {"cache_creation_input_tokens", 3000},
    {"cache_read_input_tokens", 200},
    {"cache_creation", {{"ephemeral_5m_input_tokens", 1000}, {"ephemeral_1h_input_tokens", 2000}}},
    {"output_tokens", 70},
    {"output_tokens_details", {{"thinking_tokens", 5}}},
    {"service_tier", "standard"}};

/// A turn with a block of each kind.
script every_kind() {
  script all;
  all.thinking({"let ", "me see"}, "sig");
  all.block(block_kind::redacted_thinking, {"cipher"});
  all.text({"Hello", " you"});
  all.block(block_kind::activity, {"Bash ", R"({"command":"ls"})", "\n"});
  all.call("t1", "look", {R"({"a)", R"(":1})"});
  all.call("t2", "go", {"{}"});
  return all;
}

}  // namespace

TEST_CASE("messages stream: events come in the API's order, each with its type") {
  CHECK(names_of(script().text({"a", "b"}).stop()) ==
        "message_start content_block_start content_block_delta content_block_delta "
        "content_block_stop message_delta message_stop");
  CHECK(names_of(script().stop()) == "message_start message_delta message_stop");
  CHECK(names_of(script().thinking({"a"}, "sig").text({"b"}).stop()) ==
        "message_start content_block_start content_block_delta content_block_delta "
        "content_block_stop content_block_start content_block_delta content_block_stop "
        "message_delta message_stop");
}

TEST_CASE("messages stream: the message begins empty, with the model and the usage so far") {
  token_usage usage;
  usage.input = 5;
  usage.cache_read = 6;
  usage.cache_write = 7;
  usage.cache_write_5m = 7;
  usage.output = 1;
  const auto all = events_of({turn_started{"claude-x", usage}});
  REQUIRE(all.size() == 1);
  CHECK(all[0].data ==
        tree{{"type", "message_start"},
             {"message",
              {{"id", "msg_ID"},
               {"type", "message"},
               {"role", "assistant"},
               {"model", "claude-x"},
               {"content", tree::array()},
               {"stop_reason", nullptr},
               {"stop_sequence", nullptr},
               {"usage",
                {{"input_tokens", 5},
                 {"cache_creation_input_tokens", 7},
                 {"cache_read_input_tokens", 6},
                 {"cache_creation",
                  {{"ephemeral_5m_input_tokens", 7}, {"ephemeral_1h_input_tokens", 0}}},
                 {"output_tokens", 1},
                 {"output_tokens_details", {{"thinking_tokens", 0}}},
                 {"service_tier", "standard"}}}}}});
}

TEST_CASE("messages stream: each kind of block has its own beginning, deltas and end") {
  const auto all = events_of(every_kind().so_far());
  std::vector<tree> blocks;
  std::vector<tree> deltas;
  for (const auto& one : all) {
    if (one.data.contains("content_block")) blocks.push_back(one.data["content_block"]);
    if (one.data.contains("delta")) deltas.push_back(one.data["delta"]);
  }
  CHECK(blocks ==
        std::vector<tree>{
            {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}},
            {{"type", "redacted_thinking"}, {"data", "cipher"}},
            {{"type", "text"}, {"text", ""}},
            {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}},
            {{"type", "tool_use"}, {"id", "t1"}, {"name", "look"}, {"input", tree::object()}},
            {{"type", "tool_use"}, {"id", "t2"}, {"name", "go"}, {"input", tree::object()}}});
  CHECK(deltas ==
        std::vector<tree>{{{"type", "thinking_delta"}, {"thinking", "let "}},
                          {{"type", "thinking_delta"}, {"thinking", "me see"}},
                          {{"type", "signature_delta"}, {"signature", "sig"}},
                          {{"type", "text_delta"}, {"text", "Hello"}},
                          {{"type", "text_delta"}, {"text", " you"}},
                          {{"type", "thinking_delta"}, {"thinking", "Bash "}},
                          {{"type", "thinking_delta"}, {"thinking", R"({"command":"ls"})"}},
                          {{"type", "thinking_delta"}, {"thinking", "\n"}},
                          {{"type", "input_json_delta"}, {"partial_json", R"({"a)"}},
                          {{"type", "input_json_delta"}, {"partial_json", R"(":1})"}},
                          {{"type", "input_json_delta"}, {"partial_json", "{}"}}});
}

TEST_CASE("messages stream: a thought that nobody signed has no signature") {
  const auto names = names_of(script().thinking({"a"}, "").so_far());
  CHECK(names == "message_start content_block_start content_block_delta content_block_stop");
}

TEST_CASE("messages stream: every event of a block bears the block's index") {
  for (const auto& one : events_of(every_kind().stop())) {
    const bool of_block = one.name.find("content_block") == 0;
    CAPTURE(one.name);
    CHECK(one.data.contains("index") == of_block);
  }
  streamed(every_kind().stop());  // checks which index
}

TEST_CASE("messages stream: the end tells why, and the usage of all of it") {
  const auto all = events_of(script().text({"a"}).stop(stop_reason::stop_sequence, "END"));
  REQUIRE(all.size() == 6);
  CHECK(all[4].data == tree{{"type", "message_delta"},
                            {"delta", {{"stop_reason", "stop_sequence"}, {"stop_sequence", "END"}}},
                            {"usage", usage_at_end}});
  CHECK(all[5].data == tree{{"type", "message_stop"}});
}

TEST_CASE("messages: stop reasons have the API's names, streamed and whole") {
  const std::vector<std::pair<stop_reason, const char*>> names = {
      {stop_reason::end_turn, "end_turn"}, {stop_reason::max_tokens, "max_tokens"},
      {stop_reason::tool_use, "tool_use"}, {stop_reason::stop_sequence, "stop_sequence"},
      {stop_reason::refusal, "refusal"},   {stop_reason::turn_limit, "max_tokens"}};
  for (const auto& [reason, name] : names) {
    const auto& tried = name;
    CAPTURE(tried);
    const auto told = script().text({"a"}).stop(reason, "END");
    for (const auto& message : {streamed(told), whole(told)}) {
      CHECK(message["stop_reason"] == name);
      const bool by_sequence = reason == stop_reason::stop_sequence;
      CHECK(message["stop_sequence"] == (by_sequence ? tree("END") : tree()));
    }
  }
}

TEST_CASE("messages: what the API says of the end and of the usage is said as it is") {
  auto told = script().text({"a"}).stop(stop_reason::max_tokens);
  auto& end = std::get<turn_stopped>(told.back());
  end.api =
      json::parse(R"({"stop_reason":"model_context_window_exceeded","stop_details":{"x":1}})");
  end.usage.api = json::parse(R"({"service_tier":"batch","speed":"fast","input_tokens":99})");
  for (const auto& message : {whole(told), streamed(told)}) {
    CHECK(message["stop_reason"] == "model_context_window_exceeded");
    CHECK(message["stop_details"]["x"] == 1);
    CHECK(message["usage"]["service_tier"] == "batch");
    CHECK(message["usage"]["speed"] == "fast");
    CHECK(message["usage"]["input_tokens"] == 11);  // ours is the sum of all messages
    CHECK(message["usage"]["output_tokens_details"]["thinking_tokens"] == 5);
  }
}

TEST_CASE("messages: the whole message is what the stream adds up to") {
  const auto told = every_kind().stop(stop_reason::tool_use);
  const auto message = whole(told);
  CHECK(
      message ==
      tree{{"id", "msg_ID"},
           {"type", "message"},
           {"role", "assistant"},
           {"model", "claude-x"},
           {"content",
            {{{"type", "thinking"}, {"thinking", "let me see"}, {"signature", "sig"}},
             {{"type", "redacted_thinking"}, {"data", "cipher"}},
             {{"type", "text"}, {"text", "Hello you"}},
             {{"type", "thinking"}, {"thinking", "Bash {\"command\":\"ls\"}\n"}, {"signature", ""}},
             {{"type", "tool_use"}, {"id", "t1"}, {"name", "look"}, {"input", {{"a", 1}}}},
             {{"type", "tool_use"}, {"id", "t2"}, {"name", "go"}, {"input", tree::object()}}}},
           {"stop_reason", "tool_use"},
           {"stop_sequence", nullptr},
           {"usage", usage_at_end}});
  CHECK(streamed(told) == message);
}

TEST_CASE("messages: the cost is told when it is known") {
  auto told = script().text({"a"}).stop();
  CHECK_FALSE(whole(told)["usage"].contains("cost"));
  std::get<turn_stopped>(told.back()).usage.cost_usd = 0.25;
  CHECK(whole(told)["usage"]["cost"] == 0.25);
  CHECK(streamed(told)["usage"]["cost"] == 0.25);
}

TEST_CASE("messages: a tool's input keeps the order in which the model wrote it") {
  collector gathered;
  for (const auto& what : script().call("t", "n", {R"({"z":1,"a":2})"}).stop()) gathered.add(what);
  const auto body = make_writer()->render({gathered.result()});
  CHECK(body.find(R"("input":{"z":1,"a":2})") != std::string::npos);
}

TEST_CASE("messages: a tool's input that the model left unfinished is an empty one") {
  for (const std::string broken : {R"({"a":)", "", "7", "[1]"}) {
    CAPTURE(broken);
    script told;
    told.call("t", "n", broken.empty() ? std::vector<std::string>{} : std::vector{broken});
    CHECK(whole(told.stop(stop_reason::max_tokens))["content"][0]["input"] == tree::object());
  }
}

TEST_CASE("messages stream: a thought whose ciphertext is empty begins before it ends") {
  const auto told = script().block(block_kind::redacted_thinking, {}).text({"a"}).stop();
  CHECK(streamed(told) == whole(told));
}

TEST_CASE("messages stream: silence is broken by a ping, at any place") {
  const auto told = script().text({"a", "b"}).stop();
  const auto writer = make_writer();
  std::string bytes;
  for (const auto& what : told) {
    writer->write_keep_alive(bytes);
    writer->write(0, what, bytes);
  }
  CHECK(bytes.find("event: ping\ndata: {\"type\":\"ping\"}\n\n") == 0);
  const test::messages_stream_reader got(bytes);
  CHECK_MESSAGE(got.problem.empty(), got.problem);
  CHECK(got.pings == told.size());
  CHECK(got.message == whole(told));
}

TEST_CASE("messages stream: a failure is an error event, at any place, and the last one") {
  const api_error failure(error_kind::overloaded, "too much \"at once\"\n");
  const tree expected{{"type", "error"},
                      {"error", {{"type", "overloaded_error"}, {"message", failure.message}}},
                      {"request_id", "req_1"}};
  for (const auto& told : {script().fail(failure), script().text({"a"}).fail(failure),
                           test::events{turn_failed{failure}}}) {
    const auto all = events_of(told);
    REQUIRE_FALSE(all.empty());
    CHECK(all.back().name == "error");
    CHECK(all.back().data == expected);
    CHECK(test::names_of(all).find("message_stop") == std::string::npos);
  }
}

TEST_CASE("messages errors: each kind has the API's type and status, its message and the id") {
  struct row {
    error_kind kind;
    const char* type;
    int status;
  };
  const std::vector<row> rows = {{error_kind::invalid_request, "invalid_request_error", 400},
                                 {error_kind::authentication, "authentication_error", 401},
                                 {error_kind::permission, "permission_error", 403},
                                 {error_kind::not_found, "not_found_error", 404},
                                 {error_kind::method_not_allowed, "invalid_request_error", 405},
                                 {error_kind::too_large, "request_too_large", 413},
                                 {error_kind::unsupported_coding, "invalid_request_error", 415},
                                 {error_kind::rate_limited, "rate_limit_error", 429},
                                 {error_kind::internal, "api_error", 500},
                                 {error_kind::upstream_failed, "api_error", 500},
                                 {error_kind::bad_gateway, "api_error", 502},
                                 {error_kind::unavailable, "api_error", 503},
                                 {error_kind::overloaded, "overloaded_error", 529},
                                 {error_kind::timed_out, "timeout_error", 504}};
  for (const auto& [kind, type, status] : rows) {
    const auto& tried = type;
    CAPTURE(tried);
    api_error error(kind, "what happened");
    error.param = "messages[0]";
    error.code = "some_code";
    const auto& dialect = anthropic_messages::dialect;
    CHECK(dialect.status(kind) == status);
    CHECK(tree::parse(dialect.render_error(error, "req_7")) ==
          tree{{"type", "error"},
               {"error", {{"type", type}, {"message", "what happened"}}},
               {"request_id", "req_7"}});
  }
}

// ---- pages of models ---------------------------------------------------------------------------

namespace {

const std::vector<model_entry> five = {{"a", 0}, {"b", 86400}, {"c", 0}, {"d", 0}, {"e", 0}};

/// `b c+` is a page of these two with more to come.
std::string page_of(const std::string& limit, const std::string& after, const std::string& before) {
  const tree told = tree::parse(render_model_page(five, limit, after, before).dump());
  std::string ids;
  for (const auto& row : told["data"]) ids += row["id"].get<std::string>() + " ";
  const bool none = told["data"].empty();
  CHECK(told["first_id"] == (none ? tree() : told["data"].front()["id"]));
  CHECK(told["last_id"] == (none ? tree() : told["data"].back()["id"]));
  return ids + (told["has_more"].get<bool>() ? "+" : "");
}

}  // namespace

TEST_CASE("model page: a model has Anthropic's fields") {
  CHECK(tree::parse(render_page_model(five[1]).dump()) ==
        tree{{"type", "model"},
             {"id", "b"},
             {"display_name", "b"},
             {"created_at", "1970-01-02T00:00:00.000Z"}});
}

TEST_CASE("model page: pages go forwards after an id and backwards before one") {
  CHECK(page_of("", "", "") == "a b c d e ");
  CHECK(page_of("2", "", "") == "a b +");
  CHECK(page_of("2", "b", "") == "c d +");
  CHECK(page_of("2", "d", "") == "e ");
  CHECK(page_of("2", "c", "") == "d e ");
  CHECK(page_of("2", "e", "") == "");
  CHECK(page_of("2", "", "e") == "c d +");
  CHECK(page_of("2", "", "c") == "a b ");
  CHECK(page_of("2", "", "a") == "");
  CHECK(page_of("5", "", "") == "a b c d e ");
  CHECK(page_of("1", "a", "e") == "d +");
  CHECK(page_of("2", "nobody", "") == "");
}

TEST_CASE("model page: a limit is from 1 to 1000, and 20 when none is given") {
  for (const std::string limit : {"0", "-1", "1001", "many", "1.5", " 2"}) {
    CAPTURE(limit);
    const auto error = test::error_of([&] { render_model_page(five, limit, "", ""); });
    CHECK(error.kind == error_kind::invalid_request);
    CHECK(error.param == "limit");
  }
  CHECK(page_of("1000", "", "") == "a b c d e ");
  std::vector<model_entry> many;
  for (int i = 0; i < 21; ++i) many.push_back({"m" + std::to_string(i), 0});
  CHECK(render_model_page(many, "", "", "")["data"].size() == 20);
  CHECK(render_model_page(many, "", "", "")["has_more"] == true);
}
