// Whatever a `claude` does, an OpenAI client gets a clear error, and nothing stays behind.
#include "proxy_support.hpp"

using namespace protocol_test;

namespace {

/// A behaviour, and what a client is told of it. `status` is for failures before the first byte.
struct misbehaviour {
  std::string wish;
  std::string configuration;
  int status;
  std::string words;
};

const std::vector<misbehaviour>& before_the_first_byte() {
  static const std::vector<misbehaviour> list{
      {"crash code=9", "", 502, "exit code 9"},
      {"crash signal=11", "", 502, "signal 11"},
      {"exit_zero", "", 502, "exit code 0"},
      {"error_result", "", 502, "told to fail"},
      {"not_logged_in", "", 503, "claude auth login"},
      {"text", "crash_at_start\n", 502, "cannot start, as told"},
      {"text", "exit_at_start\n", 502, "exit code 0"},
      {"text", "crash_in_initialize\n", 502, "exit code 1"},
      {"text", "error_in_initialize\n", 502, "failed as told"},
      {"text", "crash_in_replay\n", 502, "exit code 1"},
      {"hang", "", 504, "--timeout"},
      {"hang", "ignore_sigterm\nignore_eof\n", 504, "--timeout"},
      {"text", "never_warm\n", 504, "--timeout"},
      {"text", "hang_in_replay\n", 504, "--timeout"},
      {"api_error status=400 say=\"bad field\"", "", 400, "bad field"},
      {"api_error status=401", "", 401, "said 401"},
      {"api_error status=403", "", 403, "said 403"},
      {"api_error status=404", "", 404, "said 404"},
      {"api_error status=413", "", 413, "said 413"},
      {"api_error status=429 delay_ms=2500", "", 429, "said 429"},
      {"api_error status=500", "", 500, "said 500"},
      {"api_error status=529 delay_ms=1200.5", "", 503, "said 529"},
  };
  return list;
}

const std::vector<misbehaviour>& after_the_first_byte() {
  static const std::vector<misbehaviour> list{
      {"crash after=2", "", 502, "exit code 1"},
      {"crash after=2 signal=9", "", 502, "signal 9"},
      {"crash at=stop", "", 502, "exit code 1"},
      {"exit_zero after=2", "", 502, "exit code 0"},
      {"hang after=2", "", 504, "--timeout"},
      {"hang at=stop", "", 504, "--timeout"},
      {"malformed kind=not_json", "", 502, "not a JSON object"},
      {"malformed kind=not_object", "", 502, "not a JSON object"},
      {"malformed kind=invalid_utf8", "", 502, "not a JSON object"},
      {"malformed kind=nul", "", 502, "not a JSON object"},
      {"malformed kind=cut_off", "", 502, "ended"},
      {"error_result after=2", "", 502, "told to fail"},
      {"api_error status=529 after=2", "", 503, "said 529"},
      {"api_error status=500 after=1", "", 500, "said 500"},
      {"retry_midstream how=different", "", 502, "differs"},
      {"retry_midstream how=different old=1", "", 502, "differs"},
  };
  return list;
}

bool is_timeout(const misbehaviour& each) { return each.status == 504; }

/// A proxy and its stand-in, once for many requests.
struct fixture {
  explicit fixture(milliseconds timeout = 20s) : proxy(settings_for(timeout)) {
    REQUIRE(program.gone());  // of the inspection
    before = resources_now();
  }

  claude_openai::options settings_for(milliseconds timeout) const {
    auto settings = options_for(program);
    settings.timeout = timeout * slowness;
    return settings;
  }

  /// No process, zombie, descriptor or thread more than before, within a moment.
  void check_nothing_left() const {
    CHECK(program.gone());
    CHECK(eventually([&] {
      const auto now = resources_now();
      return now.descriptors <= before.descriptors && now.threads <= before.threads;
    }));
  }

  stand_in program;
  running_proxy proxy;
  resources before{};
};

/// Those that end by the timeout want a short one, the others must not meet it on a busy machine.
struct fixtures {
  fixtures() { patient.before = hasty.before = resources_now(); }
  fixture patient{20s};
  fixture hasty{400ms};
  fixture& of(const misbehaviour& each) { return is_timeout(each) ? hasty : patient; }
  void check_nothing_left() const {
    patient.check_nothing_left();
    hasty.check_nothing_left();
  }
};

void check_retry_headers(const http_answer& got) {
  if (got.status != 429 && got.status != 503) return;
  const auto seconds = got.header("retry-after");
  REQUIRE_FALSE(seconds.empty());
  CHECK(std::stoi(seconds) >= 1);
}

}  // namespace

TEST_CASE("server: a failure before the first byte is a real status with OpenAI's error") {
  fixtures all;
  for (const auto& each : before_the_first_byte()) {
    auto& given = all.of(each);
    for (const bool stream : {false, true}) {
      CAPTURE(each.wish);
      CAPTURE(each.configuration);
      CAPTURE(stream);
      given.program.configure(each.configuration);
      const auto got = given.proxy.chat(chat_with_past(each.wish, stream));
      CHECK(got.complete);
      CHECK(got.status == each.status);
      CHECK(got.header("content-type") == "application/json");
      check_error_body(got.parsed(), each.words);
      check_retry_headers(got);
    }
    given.check_nothing_left();
  }
}

TEST_CASE("server: a failure after the first byte is told within the stream, which ends") {
  fixtures all;
  for (const auto& each : after_the_first_byte()) {
    auto& given = all.of(each);
    CAPTURE(each.wish);
    given.program.configure(each.configuration);
    const auto got = given.proxy.chat(chat_asking(each.wish, true));
    CHECK(got.status == 200);
    CHECK(got.complete);
    const auto payloads = payloads_of(got.body);
    REQUIRE(payloads.size() >= 3);
    CHECK(payloads.back() == "[DONE]");
    check_error_body(json::parse(payloads[payloads.size() - 2]), each.words);
    CHECK(got.body.find("\"finish_reason\":\"") == std::string::npos);
    CHECK_FALSE(streamed_text(got.body).empty());
  }
  all.check_nothing_left();
}

TEST_CASE("server: who does not stream never gets half an answer, but the failure's status") {
  fixtures all;
  for (const auto& each : after_the_first_byte()) {
    auto& given = all.of(each);
    CAPTURE(each.wish);
    given.program.configure(each.configuration);
    const auto got = given.proxy.chat(chat_asking(each.wish));
    if (each.wish.rfind("retry_midstream", 0) == 0) {  // nothing has left: the new attempt is all
      CHECK(got.status == 200);
      CHECK(got.parsed()["choices"][0]["message"]["content"] == "Quite another text.");
      continue;
    }
    CHECK(got.status == each.status);
    check_error_body(got.parsed(), each.words);
    check_retry_headers(got);
  }
  all.check_nothing_left();
}

TEST_CASE("server: a retry delay that the CLI tells reaches the client") {
  fixture given;
  const auto got = given.proxy.chat(chat_asking("api_error status=429 delay_ms=2500"));
  CHECK(got.header("retry-after") == "3");
  CHECK(got.header("retry-after-ms") == "2500");
}

TEST_CASE("server: strange but harmless behaviour is answered in full") {
  fixture given;
  const std::vector<std::pair<std::string, std::string>> harmless{
      {"text n=3", "w0 w1 w2"},
      {"malformed kind=unknown_types", "w0 w1 w2"},
      {"rate_limit", "w0 w1 w2"},
      {"thinking n=3", "w0 w1 w2"},
      {"retry_midstream how=same", "Hello there old friend."},
      {"retry_midstream how=same old=1", "Hello there old friend."},
      {"retry_midstream how=assistant_only", "Hello there old friend."},
      {"text]] [[split", "w0 w1 w2"},
      {"text]] [[burst", "w0 w1 w2"},
      {"text]] [[stderr_flood", "w0 w1 w2"},
      {"text]] [[grandchild", "w0 w1 w2"},
      {"text]] [[ignore_sigterm]] [[ignore_eof", "w0 w1 w2"},
  };
  for (const auto& each : harmless) {
    const auto& wish = each.first;
    const auto& words = each.second;
    CAPTURE(wish);
    const auto whole = given.proxy.chat(chat_asking(wish));
    REQUIRE(whole.status == 200);
    CHECK(whole.parsed()["choices"][0]["message"]["content"] == words);
    CHECK(whole.parsed()["choices"][0]["finish_reason"] == "stop");
    const auto stream = given.proxy.chat(chat_asking(wish, true));
    CHECK(streamed_text(stream.body) == words);
    CHECK(payloads_of(stream.body).back() == "[DONE]");
  }
  given.check_nothing_left();
}

TEST_CASE("server: a cut answer says why, and ends where the API ended it") {
  fixture given;
  const std::vector<std::pair<std::string, std::string>> reasons{
      {"max_tokens say=\"as far as\"", "length"},
      {"refusal say=\"as far as\"", "content_filter"},
      {"stop_sequence say=\"as far as\"", "stop"},
  };
  for (const auto& each : reasons) {
    const auto& wish = each.first;
    const auto& reason = each.second;
    CAPTURE(wish);
    const auto whole = given.proxy.chat(chat_asking(wish)).parsed();
    CHECK(whole["choices"][0]["message"]["content"] == "as far as");
    CHECK(whole["choices"][0]["finish_reason"] == reason);
    const auto stream = given.proxy.chat(chat_asking(wish, true));
    CHECK(streamed_text(stream.body) == "as far as");
    CHECK(stream.body.find("\"finish_reason\":\"" + reason + "\"") != std::string::npos);
  }
  given.check_nothing_left();
}

TEST_CASE("server: usage is the API's, cache included, and the cost is the CLI's") {
  fixture given;
  auto body = chat_asking("text n=1 in=11 out=22 cache_read=33 cache_write=44", true);
  body["stream_options"] = {{"include_usage", true}};
  const auto payloads = payloads_of(given.proxy.chat(body).body);
  REQUIRE(payloads.size() >= 2);
  const auto last = json::parse(payloads[payloads.size() - 2]);
  CHECK(last["choices"].empty());
  body["stream"] = false;
  body.erase("stream_options");
  for (const auto& usage : {last["usage"], given.proxy.chat(body).parsed()["usage"]}) {
    CHECK(usage["prompt_tokens"] == 88);
    CHECK(usage["prompt_tokens_details"]["cached_tokens"] == 33);
    CHECK(usage["completion_tokens"] == 22);
    CHECK(usage["total_tokens"] == 110);
    CHECK(usage["cost"].get<double>() == doctest::Approx(0.000135));
  }
}

TEST_CASE("server: a claude that vanished is told with the command that brings it back") {
  fixture given;
  std::filesystem::remove(given.program.path());
  for (int i = 0; i < 10; ++i) {
    const auto got = given.proxy.chat(chat_asking("text", i % 2 == 0));
    CHECK(got.status == 503);
    check_error_body(got.parsed(), "npm install -g @anthropic-ai/claude-code");
    check_retry_headers(got);
  }
  CHECK(given.proxy.get("/health").status == 200);
  given.check_nothing_left();
}

TEST_CASE("server: a claude that is too old is found out at the start, with the upgrade line") {
  const stand_in program("version value=2.1.119\n");
  running_proxy proxy(options_for(program));
  const auto facts = proxy.server().facts();
  CHECK(facts.too_old);
  CHECK(facts.problem.find("npm install -g @anthropic-ai/claude-code") != std::string::npos);
  CHECK(program.started() == 0);
  CHECK(proxy.get("/health").parsed()["status"] == "degraded");
  const auto status = proxy.get("/v1/auth/status").parsed();
  CHECK(status["claude_code_auth"]["status"]["valid"] == false);
}

TEST_CASE("server: an account that is not logged in is found out at the start") {
  const stand_in program("not_logged_in\n");
  auto settings = options_for(program);
  settings.environment.erase("ANTHROPIC_API_KEY");
  running_proxy proxy(settings);
  const auto got = proxy.chat(chat_asking("text"));
  CHECK(got.status == 503);
  check_error_body(got.parsed(), "claude auth login");
  CHECK(got.header("x-should-retry") == "false");
}

TEST_CASE("server: a claude that hangs at `--version` delays nothing") {
  const stand_in program("slow_version ms=60000\n");
  claude_openai::server server(options_for(program));
  server.bind();
  std::thread running([&] { server.run(); });
  {
    const auto start = steady::now();
    connection client(server.port());
    client.get("/health");
    CHECK(client.answer().status == 200);
    CHECK(elapsed_since(start) < 1s * patience);
  }
  const auto stopping = steady::now();
  server.stop();
  running.join();
  CHECK(elapsed_since(stopping) < 2s * patience);
}
