// The dialects over HTTP: each tells a failure in its own shape and status, wrong bodies are
// shown the way, responses can be cancelled and referred to, tokens are counted.
#include "proxy_support.hpp"

#include <functional>
#include <mutex>

using namespace protocol_test;

namespace {

/// One endpoint and how its clients ask, fail and stream.
struct dialect {
  std::string path;
  bool anthropic;
  std::function<json(const std::string& words)> body;
};

const std::vector<dialect>& dialects() {
  static const std::vector<dialect> all{
      {"/v1/chat/completions", false,
       [](const std::string& words) {
         return json{{"model", "claude-test"},
                     {"messages", {{{"role", "user"}, {"content", words}}}}};
       }},
      {"/v1/messages", true,
       [](const std::string& words) {
         return json{{"model", "claude-test"},
                     {"max_tokens", 100},
                     {"messages", {{{"role", "user"}, {"content", words}}}}};
       }},
      {"/v1/responses", false,
       [](const std::string& words) {
         return json{{"model", "claude-test"}, {"input", words}};
       }},
      {"/v1/completions", false,
       [](const std::string& words) {
         return json{{"model", "claude-test"}, {"prompt", words}};
       }},
  };
  return all;
}

json asking_for(const dialect& one, const std::string& wish, bool stream) {
  auto body = one.body(told(wish));
  if (stream) body["stream"] = true;
  return body;
}

/// Checks that this is an error as that endpoint's clients want it.
void check_error(const dialect& one, const http_answer& got, const std::string& type,
                 const std::string& words) {
  const auto body = got.parsed();
  CAPTURE(got.body);
  if (!one.anthropic) {
    check_error_body(body, words);
    if (!type.empty()) CHECK(body["error"]["type"] == type);
    CHECK(got.header("request-id").empty());
    return;
  }
  REQUIRE(body.is_object());
  CHECK(body.value("type", "") == "error");
  REQUIRE(body.contains("error"));
  CHECK(body["error"].size() == 2);
  if (!type.empty()) CHECK(body["error"]["type"] == type);
  CHECK(body["error"]["message"].get<std::string>().find(words) != std::string::npos);
  CHECK(body.value("request_id", "") == got.header("request-id"));
  CHECK_FALSE(got.header("request-id").empty());
}

/// The data of the events of a stream.
std::vector<json> events_in(const std::string& body) {
  std::vector<json> all;
  for (const auto& payload : payloads_of(body)) {
    auto data = json::parse(payload, nullptr, false);
    if (data.is_object()) all.push_back(std::move(data));
  }
  return all;
}

struct fixture {
  explicit fixture(std::function<void(claude_openai::options&)> change = {})
      : proxy(changed(std::move(change))) {}

  claude_openai::options changed(const std::function<void(claude_openai::options&)>& change) {
    auto settings = options_for(program);
    if (change) change(settings);
    return settings;
  }

  http_answer request(const std::string& method, const std::string& path,
                      const std::string& headers = "") const {
    connection client(proxy.port());
    client.write(method + " " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers +
                 "Content-Length: 0\r\n\r\n");
    return client.answer();
  }
  http_answer post(const std::string& path, const json& body,
                   const std::string& headers = "") const {
    return proxy.ask(path, body.dump(), headers);
  }
  json respond(const json& body) const {
    const auto got = post("/v1/responses", body);
    REQUIRE_MESSAGE(got.status == 200, got.body);
    return got.parsed();
  }

  stand_in program;
  running_proxy proxy;
};

std::string text_of(const json& response) { return response["output"][0]["content"][0]["text"]; }

}  // namespace

// ---- failures ----------------------------------------------------------------------------------

TEST_CASE("dialects: a failure before the first byte has the dialect's shape and status") {
  const fixture given;
  struct row {
    std::string wish;
    int openai, anthropic;
    std::string openai_type, anthropic_type, words;
  };
  const std::vector<row> rows{
      {"api_error status=529", 503, 529, "server_error", "overloaded_error", "said 529"},
      {"api_error status=429", 429, 429, "rate_limit_error", "rate_limit_error", "said 429"},
      {"api_error status=401", 401, 401, "authentication_error", "authentication_error", "401"},
      {"api_error status=400 say=\"bad field\"", 400, 400, "invalid_request_error",
       "invalid_request_error", "bad field"},
      {"api_error status=500", 500, 500, "server_error", "api_error", "said 500"},
      {"crash code=9", 502, 502, "server_error", "api_error", "exit code 9"},
  };
  for (const auto& one : dialects()) {
    for (const auto& each : rows) {
      for (const bool stream : {false, true}) {
        CAPTURE(one.path);
        CAPTURE(each.wish);
        CAPTURE(stream);
        const auto got = given.post(one.path, asking_for(one, each.wish, stream));
        CHECK(got.complete);
        CHECK(got.status == (one.anthropic ? each.anthropic : each.openai));
        CHECK(got.header("content-type") == "application/json");
        check_error(one, got, one.anthropic ? each.anthropic_type : each.openai_type, each.words);
        const bool says_when = got.status == 429 || got.status == 503 || got.status == 529;
        CHECK(got.header("retry-after").empty() != says_when);
      }
    }
  }
  CHECK(given.program.gone());
}

TEST_CASE("dialects: a failure after the first byte is told in the dialect's stream, which ends") {
  const fixture given;
  for (const auto& one : dialects()) {
    CAPTURE(one.path);
    const auto got = given.post(one.path, asking_for(one, "crash after=2", true));
    CHECK(got.complete);
    CHECK(got.status == 200);
    CHECK(got.header("content-type") == "text/event-stream");
    const auto events = events_in(got.body);
    REQUIRE_FALSE(events.empty());
    const auto& last = events.back();
    CAPTURE(last.dump());
    const bool done = got.body.find("data: [DONE]\n\n") != std::string::npos;
    if (one.path == "/v1/messages") {
      REQUIRE(last["type"] == "error");
      CHECK(last["error"]["type"] == "api_error");
      CHECK(last["request_id"] == got.header("request-id"));
      CHECK_FALSE(done);
    } else if (one.path == "/v1/responses") {
      REQUIRE(last["type"] == "response.failed");
      CHECK(last["response"]["status"] == "failed");
      CHECK(last["response"]["error"]["code"] == "bad_gateway");
      CHECK_FALSE(done);
    } else {
      REQUIRE(last.contains("error"));
      CHECK(last["error"]["code"] == "bad_gateway");
      CHECK(done);
    }
  }
}

TEST_CASE(
    "dialects: a client of Ollama's is told a failure as a text, before a stream and within") {
  const fixture given([](auto& settings) { settings.api_keys = {"k"}; });
  const auto ask = [&](const std::string& path, const std::string& wish, bool stream,
                       const std::string& key = "Authorization: Bearer k\r\n") {
    json body{{"model", "claude-test"}, {"stream", stream}};
    body["prompt"] = told(wish);
    if (path == "/api/chat") {
      body["messages"] = {{{"role", "user"}, {"content", told(wish)}}};
    }
    return given.post(path, body, key);
  };
  const auto told_error = [](const json& line) {
    return line.size() == 1 ? line.value("error", "") : std::string();
  };
  for (const std::string path : {"/api/chat", "/api/generate"}) {
    CAPTURE(path);
    for (const bool stream : {false, true}) {
      const auto got = ask(path, "api_error status=529", stream);
      CHECK(got.status == 503);
      CHECK(got.header("content-type") == "application/json");
      CHECK_FALSE(got.header("retry-after").empty());
      CHECK(told_error(got.parsed()).find("said 529") != std::string::npos);
    }
    const auto stranger = ask(path, "text", true, "");
    CHECK(stranger.status == 401);
    CHECK(told_error(stranger.parsed()).find("Missing API key") != std::string::npos);
    const auto cut = ask(path, "crash after=2", true);
    CHECK(cut.status == 200);
    CHECK(cut.complete);
    CHECK(cut.header("content-type") == "application/x-ndjson");
    std::istringstream lines(cut.body);
    json last;
    for (std::string line; std::getline(lines, line);) last = json::parse(line, nullptr, false);
    CHECK(told_error(last).find("exit code") != std::string::npos);
  }
  CHECK(given.program.gone());
}

TEST_CASE("dialects: what only Ollama has is refused with advice, in its words") {
  const fixture given;
  for (const std::string path :
       {"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/sha256:0",
        "/api/embed", "/api/embeddings"}) {
    CAPTURE(path);
    const auto got = given.post(path, json::object());
    CHECK(got.status == 404);
    const auto error = got.parsed().value("error", "");
    CHECK(error.find("/api/") == 0);
    CHECK(error.find("is not offered here: ") != std::string::npos);
  }
  const auto unknown = given.post("/api/nothing", json::object());
  CHECK(unknown.status == 404);
  CHECK(unknown.parsed().value("error", "").find("unknown path") == 0);
}

TEST_CASE("dialects: a client without a key is told so in its own dialect") {
  const fixture given([](auto& settings) { settings.api_keys = {"k"}; });
  for (const auto& one : dialects()) {
    CAPTURE(one.path);
    const auto body = one.body("Hi");
    const auto got = given.post(one.path, body);
    CHECK(got.status == 401);
    check_error(one, got, "authentication_error", "Missing API key");
    CHECK(given.post(one.path, body, "x-api-key: k\r\n").status == 200);
    CHECK(given.post(one.path, body, "Authorization: Bearer k\r\n").status == 200);
  }
  const auto count = given.post("/v1/messages/count_tokens", dialects()[1].body("Hi"));
  CHECK(count.status == 401);
  check_error(dialects()[1], count, "authentication_error", "Missing API key");
}

// ---- wrong bodies, wrong paths -----------------------------------------------------------------

TEST_CASE("dialects: a body that was sent to the wrong endpoint is shown the right one") {
  const fixture given;
  const std::map<std::string, std::string> field = {{"/v1/chat/completions", "messages"},
                                                    {"/v1/messages", "messages"},
                                                    {"/v1/responses", "input"},
                                                    {"/v1/completions", "prompt"}};
  for (const auto& to : dialects()) {
    for (const auto& from : dialects()) {
      if (field.at(to.path) == field.at(from.path)) continue;
      CAPTURE(to.path);
      CAPTURE(from.path);
      const auto got = given.post(to.path, from.body("Hi"));
      CHECK(got.status == 400);
      check_error(to, got, "invalid_request_error", from.path);
      if (!to.anthropic) CHECK(got.parsed()["error"]["param"] == field.at(from.path));
    }
  }
  const json source = {{"type", "base64"}, {"media_type", "image/png"}, {"data", "AAAA"}};
  const json block = {{"type", "image"}, {"source", source}};
  const auto chat =
      given.post("/v1/chat/completions",
                 {{"messages", {{{"role", "user"}, {"content", json::array({block})}}}}});
  CHECK(chat.status == 400);
  check_error(dialects()[0], chat, "invalid_request_error", "/v1/messages");
  const auto count = given.post("/v1/messages/count_tokens", dialects()[2].body("Hi"));
  CHECK(count.status == 400);
  check_error(dialects()[1], count, "invalid_request_error", "/v1/responses");
  CHECK(given.program.started() == 1);  // the inspection's
}

TEST_CASE("dialects: endpoints of other servers are refused with advice, in the client's dialect") {
  const fixture given;
  for (const std::string path :
       {"/v1/embeddings", "/v1/images/generations", "/v1/audio/speech", "/v1/moderations",
        "/v1/files", "/v1/files/file_1", "/v1/batches", "/v1/assistants", "/v1/threads/t/runs",
        "/v1/uploads", "/embeddings"}) {
    CAPTURE(path);
    const auto got = given.post(path, json::object());
    CHECK(got.status == 404);
    check_error(dialects()[0], got, "not_found_error", "is not offered here: ");
    const auto told = given.post(path, json::object(), "anthropic-version: 2023-06-01\r\n");
    CHECK(told.status == 404);
    check_error(dialects()[1], told, "not_found_error", "is not offered here: ");
  }
  const auto batches = given.post("/v1/messages/batches", json::object());
  CHECK(batches.status == 404);
  check_error(dialects()[1], batches, "not_found_error", "one by one to /v1/messages");
  const auto unknown = given.post("/v1/filesystem", json::object());
  CHECK(unknown.status == 404);
  check_error(dialects()[0], unknown, "not_found_error", "unknown path");
}

// ---- headers -----------------------------------------------------------------------------------

TEST_CASE("dialects: every answer has an id, the client's own where it is harmless") {
  const fixture given;
  for (const auto& one : dialects()) {
    for (const bool stream : {false, true}) {
      CAPTURE(one.path);
      CAPTURE(stream);
      const auto body = asking_for(one, "text n=1", stream);
      const auto got = given.post(one.path, body);
      CHECK(got.status == 200);
      CHECK(got.header("x-request-id").rfind("req_", 0) == 0);
      CHECK(got.header("request-id") == (one.anthropic ? got.header("x-request-id") : ""));
      CHECK(got.header("x-request-id") != given.post(one.path, body).header("x-request-id"));
      const auto own = given.post(one.path, body, "X-Request-Id: my-1.x_2\r\n");
      CHECK(own.header("x-request-id") == "my-1.x_2");
      CHECK(own.header("request-id") == (one.anthropic ? "my-1.x_2" : ""));
      const auto bad = given.post(one.path, body, "X-Request-Id: a b\r\n");
      CHECK(bad.header("x-request-id").rfind("req_", 0) == 0);
    }
  }
}

TEST_CASE("dialects: models are listed in the client's dialect, page by page") {
  const fixture given;
  const std::string version = "anthropic-version: 2023-06-01\r\n";
  const auto openai = given.request("GET", "/v1/models").parsed();
  CHECK(openai["object"] == "list");
  const auto all = openai["data"].size();
  REQUIRE(all > 3);
  const auto anthropic = given.request("GET", "/v1/models?limit=1000", version);
  CHECK_FALSE(anthropic.header("request-id").empty());
  CHECK(anthropic.parsed()["data"].size() == all);
  CHECK(anthropic.parsed()["data"][0]["type"] == "model");
  std::vector<std::string> ids;
  std::string after;
  for (bool more = true; more && ids.size() < 100;) {
    const auto page = given.request("GET", "/v1/models?limit=2" + after, version).parsed();
    CHECK(page["data"].size() <= 2);
    for (const auto& model : page["data"]) ids.push_back(model["id"]);
    more = page["has_more"];
    after = "&after_id=" + page["last_id"].get<std::string>();
  }
  REQUIRE(ids.size() == all);
  for (std::size_t i = 0; i < all; ++i) CHECK(ids[i] == openai["data"][i]["id"]);
  const auto one = given.request("GET", "/v1/models/claude-haiku-4-5-20251001", version).parsed();
  CHECK(one["type"] == "model");
  CHECK(one["created_at"] == "2025-10-01T00:00:00.000Z");
  CHECK(given.request("GET", "/v1/models/x").parsed()["object"] == "model");
  const auto wrong = given.request("GET", "/v1/models?limit=0", version);
  CHECK(wrong.status == 400);
  check_error(dialects()[1], wrong, "invalid_request_error", "limit");
}

// ---- counting tokens ---------------------------------------------------------------------------

namespace {

/// Stands in for the API's own counting.
class counting_api {
 public:
  explicit counting_api(int status) {
    server_.Post(".*", [this, status](const httplib::Request& asked, httplib::Response& told) {
      const std::lock_guard<std::mutex> lock(mutex_);
      path_ = asked.path;
      key_ = asked.get_header_value("x-api-key");
      body_ = json::parse(asked.body, nullptr, false);
      told.status = status;
      told.set_content(R"({"input_tokens":4321})", "application/json");
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    REQUIRE(eventually([&] { return server_.is_running(); }));
  }
  ~counting_api() {
    server_.stop();
    thread_.join();
  }

  std::string address() const { return "http://127.0.0.1:" + std::to_string(port_); }
  json asked() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {{"path", path_}, {"key", key_}, {"body", body_}};
  }

 private:
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
  std::mutex mutex_;
  std::string path_;
  std::string key_;
  json body_;
};

http_answer count(const fixture& given, const std::string& words = "How many?") {
  json body = dialects()[1].body(words);
  body.erase("max_tokens");
  return given.post("/v1/messages/count_tokens", body);
}

}  // namespace

TEST_CASE("count_tokens: the API counts where there is a key for it") {
  counting_api api(200);
  const fixture given([&](auto& settings) {
    settings.environment["ANTHROPIC_BASE_URL"] = api.address() + "/base";
  });
  const auto got = count(given);
  CHECK(got.status == 200);
  CHECK(got.header("x-token-count") == "exact");
  CHECK(got.parsed() == json{{"input_tokens", 4321}});
  const auto asked = api.asked();
  CHECK(asked["path"] == "/base/v1/messages/count_tokens");
  CHECK(asked["key"] == "sk-ant-not-a-key");
  CHECK(asked["body"]["model"] == "claude-test");
  CHECK(asked["body"]["messages"][0]["content"] == "How many?");
  CHECK(given.program.started() == 1);  // the inspection's
}

TEST_CASE("count_tokens: where the API does not count, the size is an estimate and says so") {
  counting_api refusing(400);
  for (const auto& address : {refusing.address(), std::string("http://127.0.0.1:1")}) {
    CAPTURE(address);
    const fixture given(
        [&](auto& settings) { settings.environment["ANTHROPIC_BASE_URL"] = address; });
    const auto few = count(given);
    CHECK(few.status == 200);
    CHECK(few.header("x-token-count") == "estimate");
    CHECK(few.parsed().size() == 1);
    const auto tokens = few.parsed()["input_tokens"].get<int>();
    CHECK(tokens > 0);
    const auto many = count(given, std::string(4000, 'x')).parsed()["input_tokens"].get<int>();
    CHECK(many > tokens + 900);
    CHECK(many < tokens + 1100);
  }
}

TEST_CASE("count_tokens: without an API key nobody is asked") {
  counting_api api(200);
  const fixture given([&](auto& settings) {
    settings.environment.erase("ANTHROPIC_API_KEY");
    settings.environment["ANTHROPIC_BASE_URL"] = api.address();
  });
  CHECK(count(given).header("x-token-count") == "estimate");
  CHECK(api.asked()["path"] == "");
}

TEST_CASE("count_tokens: a body that cannot be counted is refused in the Messages API's shape") {
  const fixture given([](auto& settings) { settings.environment.erase("ANTHROPIC_API_KEY"); });
  const auto got = given.post("/v1/messages/count_tokens", {{"messages", json::array()}});
  CHECK(got.status == 400);
  check_error(dialects()[1], got, "invalid_request_error", "messages");
}

// ---- responses ---------------------------------------------------------------------------------

TEST_CASE("responses: one that is cancelled in mid-stream ends, and frees its process") {
  const fixture given([](auto& settings) { settings.max_processes = 1; });
  connection client(given.proxy.port());
  const auto body = asking_for(dialects()[2], "text n=10000 delay_ms=20", true);
  client.post("/v1/responses", body.dump());
  REQUIRE(client.wait_for("response.output_text.delta"));
  CHECK(given.program.live().size() == 1);
  const auto& seen = client.received();
  const auto id = seen.substr(seen.find("\"id\":\"resp_") + 6, 5 + 24);
  CHECK(given.request("GET", "/v1/responses/" + id).parsed()["status"] == "in_progress");
  const auto cancelled = given.request("POST", "/v1/responses/" + id + "/cancel");
  CHECK(cancelled.status == 200);
  CHECK(cancelled.parsed()["status"] == "cancelled");
  CHECK(cancelled.parsed()["id"] == id);
  const auto got = client.answer(5s);
  CHECK(got.complete);
  const auto events = events_in(got.body);
  REQUIRE_FALSE(events.empty());
  REQUIRE(events.back()["type"] == "response.failed");
  CHECK(events.back()["response"]["status"] == "cancelled");
  CHECK(given.program.gone());
  CHECK(given.request("GET", "/v1/responses/" + id).parsed()["status"] == "cancelled");
  CHECK(given.request("POST", "/v1/responses/" + id + "/cancel").parsed()["status"] == "cancelled");
  CHECK(text_of(given.respond(asking_for(dialects()[2], "text n=1", false))) == "w0");
}

TEST_CASE("responses: one that has ended stays as it is when it is cancelled") {
  const fixture given;
  const auto response = given.respond(asking_for(dialects()[2], "text n=2", false));
  const std::string id = response["id"];
  const auto got = given.request("POST", "/v1/responses/" + id + "/cancel");
  CHECK(got.status == 200);
  CHECK(got.parsed() == response);
  CHECK(given.request("POST", "/v1/responses/resp_x/cancel").status == 404);
  CHECK(given.request("POST", "/v1/responses/" + id + "/other").status == 405);
}

TEST_CASE("responses: what was answered can be had again, streamed or not, until it is deleted") {
  const fixture given;
  for (const bool stream : {false, true}) {
    CAPTURE(stream);
    const auto got = given.post("/v1/responses", asking_for(dialects()[2], "text n=2", stream));
    const auto response = stream ? events_in(got.body).back()["response"] : got.parsed();
    const std::string path = "/v1/responses/" + response["id"].get<std::string>();
    CHECK(given.request("GET", path).parsed() == response);
    const auto items = given.request("GET", path + "/input_items").parsed();
    CHECK(items["object"] == "list");
    CHECK(items["data"][0]["content"][0]["text"] == told("text n=2"));
    const auto deleted = given.request("DELETE", path);
    CHECK(deleted.status == 200);
    CHECK(deleted.parsed() ==
          json{{"id", response["id"]}, {"object", "response"}, {"deleted", true}});
    for (const auto& gone : {path, path + "/input_items"}) {
      const auto missing = given.request("GET", gone);
      CHECK(missing.status == 404);
      check_error(dialects()[2], missing, "not_found_error", "not found");
    }
    CHECK(given.request("DELETE", path).status == 404);
  }
}

TEST_CASE("responses: input items come newest first, or oldest first for who asks so") {
  const fixture given;
  const json input = {{{"role", "user"}, {"content", "one"}},
                      {{"role", "assistant"}, {"content", "two"}},
                      {{"role", "user"}, {"content", told("text n=1")}}};
  const auto id = given.respond({{"input", input}})["id"].get<std::string>();
  const auto listed = [&](const std::string& order) {
    const auto items = given.request("GET", "/v1/responses/" + id + "/input_items" + order);
    return items.parsed()["data"][0]["content"][0]["text"].get<std::string>();
  };
  CHECK(listed("") == told("text n=1"));
  CHECK(listed("?order=desc") == told("text n=1"));
  CHECK(listed("?order=asc") == "one");
}

TEST_CASE("responses: what is not to be stored, or was refused, is not there afterwards") {
  const fixture given;
  const auto response =
      given.respond({{"input", told("text n=1")}, {"store", false}, {"model", "claude-test"}});
  CHECK(response["store"] == false);
  const std::string id = response["id"];
  CHECK(given.request("GET", "/v1/responses/" + id).status == 404);
  const auto next = given.post("/v1/responses", {{"input", "x"}, {"previous_response_id", id}});
  CHECK(next.status == 404);
  check_error(dialects()[2], next, "not_found_error", id);
  CHECK(next.parsed()["error"]["code"] == "previous_response_not_found");
  CHECK(next.parsed()["error"]["param"] == "previous_response_id");
}

TEST_CASE("responses: a successor goes on with the history, in the same process while it lives") {
  for (const bool lives : {true, false}) {
    CAPTURE(lives);
    const fixture given([&](auto& settings) { settings.idle_timeout = lives ? 60s : 0ms; });
    const auto ask = [&](const std::string& words, const std::string& previous) {
      json body{{"model", "claude-test"}, {"input", words}, {"instructions", "Be a test."}};
      if (!previous.empty()) body["previous_response_id"] = previous;
      return given.respond(body);
    };
    const auto first = ask("[[who]] secret-1", "");
    const auto second = ask("[[who]] secret-2", first["id"]);
    const auto third = ask("[[who]] secret-3", second["id"]);
    CHECK(third["previous_response_id"] == second["id"]);
    const auto one = json::parse(text_of(first));
    const auto last = json::parse(text_of(third));
    CHECK(last["messages"] == 5);
    CHECK(last["secrets"] == json{"secret-1", "secret-2", "secret-3"});
    CHECK((last["pid"] == one["pid"]) == lives);
    CHECK(last["turn"] == (lives ? 3 : 1));
    const auto branch = json::parse(text_of(ask("[[who]]", first["id"])));
    CHECK(branch["secrets"] == json{"secret-1"});
    CHECK(branch["messages"] == 3);
  }
}

TEST_CASE("responses: one client's are unknown to another") {
  const fixture given([](auto& settings) { settings.api_keys = {"a", "b"}; });
  const std::string a = "x-api-key: a\r\n";
  const std::string b = "x-api-key: b\r\n";
  const auto got = given.post("/v1/responses", {{"input", told("text n=1")}}, a);
  const auto id = got.parsed()["id"].get<std::string>();
  const json next{{"input", told("text n=1")}, {"previous_response_id", id}};
  CHECK(given.post("/v1/responses", next, b).status == 404);
  CHECK(given.request("GET", "/v1/responses/" + id, b).status == 404);
  CHECK(given.request("POST", "/v1/responses/" + id + "/cancel", b).status == 404);
  CHECK(given.request("DELETE", "/v1/responses/" + id, b).status == 404);
  CHECK(given.post("/v1/responses", next, a).status == 200);
}
