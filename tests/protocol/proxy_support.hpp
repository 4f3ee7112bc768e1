// What the tests of the header's process sections share, on top of support.hpp.
#pragma once

#include "claude-openai.hpp"
#include "support.hpp"

namespace protocol_test {

/// Options that run that stand-in, quickly and without a word.
inline claude_openai::options options_for(const stand_in& program) {
  claude_openai::options settings;
  settings.port = 0;
  settings.claude_path = program.path();
  settings.working_directory = program.folder();
  settings.default_model = "claude-test";
  settings.spares = 0;
  settings.max_processes = 8;
  settings.timeout = 20s * slowness;
  settings.idle_timeout = 0ms;  // a process ends with its answer; the tests of living ones say so
  settings.stop_grace = 300ms;
  settings.environment = {{"HOME", program.folder()},
                          {"PATH", "/usr/bin:/bin"},
                          {"ANTHROPIC_API_KEY", "sk-ant-not-a-key"},
                          {"API_KEY", "a-client-key"}};
  return settings;
}

inline claude_openai::message user_says(const std::string& words) {
  return {claude_openai::role::user, {claude_openai::text_part{words}}};
}

inline claude_openai::message assistant_says(const std::string& words) {
  return {claude_openai::role::assistant, {claude_openai::text_part{words}}};
}

/// A conversation of one message, which asks the stand-in for that behaviour.
inline claude_openai::turn_request asking(const std::string& wish) {
  claude_openai::turn_request request;
  request.model = "claude-test";
  request.system = "Be a test.";
  request.messages = {user_says(told(wish))};
  return request;
}

/// How a turn went. A broken attempt's text does not count, as in answers that are not streamed.
struct outcome {
  std::string text;
  std::vector<std::string> deltas;
  std::optional<claude_openai::turn_stopped> stopped;
  std::optional<claude_openai::api_error> error;
  bool client_left = false;

  bool ended() const { return stopped || error || client_left; }

  void add(const claude_openai::event& what) {
    if (const auto* delta = std::get_if<claude_openai::block_delta>(&what)) {
      text += delta->text;
      deltas.push_back(delta->text);
    }
    if (std::holds_alternative<claude_openai::attempt_broken>(what)) text.clear();
    if (const auto* end = std::get_if<claude_openai::turn_stopped>(&what)) stopped = *end;
    if (const auto* end = std::get_if<claude_openai::turn_failed>(&what)) error = end->error;
  }
};

/// Checks that the turn failed so, with words that help.
inline void check_failed(const outcome& got, claude_openai::error_kind kind,
                         const std::string& words) {
  REQUIRE_MESSAGE(got.error, "no error, but: " << got.text.substr(0, 200));
  CHECK(claude_openai::http_status(got.error->kind) == claude_openai::http_status(kind));
  CHECK_MESSAGE(got.error->message.find(words) != std::string::npos, got.error->message);
}

/// A chat request of one message, which asks the stand-in for that behaviour.
inline json chat_asking(const std::string& wish, bool stream = false) {
  json body{{"model", "claude-test"}, {"messages", {{{"role", "user"}, {"content", told(wish)}}}}};
  if (stream) body["stream"] = true;
  return body;
}

/// The static locals of the system's httplib library are set up by code that the thread sanitizer
/// does not see: it takes their first use by several threads for a race. Here one thread is first.
inline void warm_up_httplib() {
  static const bool warm = [] {
    const stand_in program;
    claude_openai::server proxy(options_for(program));
    proxy.bind();
    std::thread running([&] { proxy.run(); });
    for (const auto* wish : {"text", "crash", "crash after=1"}) {
      for (const bool stream : {false, true}) {
        connection client(proxy.port());
        client.post("/v1/chat/completions", chat_asking(wish, stream).dump());
        client.answer();
      }
    }
    proxy.stop();
    running.join();
    return true;
  }();
  static_cast<void>(warm);
}

/// A proxy that runs in a thread of its own, on a port of its own, after it has looked at its CLI.
class running_proxy {
 public:
  explicit running_proxy(claude_openai::options settings) : server_(std::move(settings)) {
    if (slowness > 1) warm_up_httplib();
    server_.on_inspected = [this](const claude_openai::cli_facts&) { inspected_ = true; };
    server_.bind();
    thread_ = std::thread([this] {
      server_.run();
      ended_ = true;
    });
    REQUIRE(eventually([&] { return inspected_.load(); }, 30s));
  }
  running_proxy(const running_proxy&) = delete;
  running_proxy& operator=(const running_proxy&) = delete;
  ~running_proxy() { stop(); }

  /// Does not wait for the requests that run.
  void stop() {
    if (!thread_.joinable()) return;
    server_.stop();
    while (!eventually([&] { return ended_.load(); }, 20ms)) server_.stop();
    thread_.join();
  }

  int port() const { return server_.port(); }
  claude_openai::server& server() { return server_; }

  http_answer ask(const std::string& path, const std::string& body,
                  const std::string& headers = "") const {
    connection client(port());
    client.post(path, body, headers);
    return client.answer();
  }
  http_answer chat(const json& body) const { return ask("/v1/chat/completions", body.dump()); }
  http_answer get(const std::string& path) const {
    connection client(port());
    client.get(path);
    return client.answer();
  }

 private:
  claude_openai::server server_;
  std::atomic<bool> inspected_{false};
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

/// The same with a past, so that there is something to replay.
inline json chat_with_past(const std::string& wish, bool stream = false) {
  auto body = chat_asking(wish, stream);
  body["messages"] = {{{"role", "user"}, {"content", "past question"}},
                      {{"role", "assistant"}, {"content", "past answer"}},
                      {{"role", "user"}, {"content", told(wish)}}};
  return body;
}

/// The payloads of the `data:` lines of a stream.
inline std::vector<std::string> payloads_of(const std::string& body) {
  std::vector<std::string> payloads;
  std::istringstream lines(body);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("data: ", 0) == 0) payloads.push_back(line.substr(6));
  }
  return payloads;
}

/// What a client that streams has seen of the answer.
inline std::string streamed_text(const std::string& body) {
  std::string text;
  for (const auto& payload : payloads_of(body)) {
    const auto chunk = json::parse(payload, nullptr, false);
    if (!chunk.is_object() || !chunk.contains("choices") || chunk["choices"].empty()) continue;
    text += chunk["choices"][0]["delta"].value("content", "");
  }
  return text;
}

/// Checks that this is an error as OpenAI's clients want it, and that it helps.
inline void check_error_body(const json& body, const std::string& words) {
  CAPTURE(body.dump());
  REQUIRE(body.is_object());
  REQUIRE(body.contains("error"));
  const auto& error = body["error"];
  CHECK(error.size() == 4);
  REQUIRE(error["message"].is_string());
  CHECK(error["type"].is_string());
  CHECK((error["param"].is_null() || error["param"].is_string()));
  CHECK((error["code"].is_null() || error["code"].is_string()));
  CHECK(error["message"].get<std::string>().find(words) != std::string::npos);
}

}  // namespace protocol_test
