// Many at once, and large: the cap, the spares, and the proxy's own patience.
#include "proxy_support.hpp"

using namespace protocol_test;

namespace {

json health(const running_proxy& proxy) { return proxy.get("/health").parsed()["processes"]; }

pid_t pid_in(const http_answer& got) {
  REQUIRE(got.status == 200);
  const auto echo = json::parse(got.parsed()["choices"][0]["message"]["content"].get<std::string>(),
                                nullptr, false);
  return echo["pid"].get<pid_t>();
}

void check_health_is_instant(const running_proxy& proxy, int times) {
  for (int i = 0; i < times; ++i) {
    const auto start = steady::now();
    CHECK(proxy.get("/health").status == 200);
    CHECK(elapsed_since(start) < 500ms * patience);
  }
}

}  // namespace

TEST_CASE("server: 200 requests at once are all answered, and the cap holds") {
  const stand_in program;
  constexpr int cap = 4;
  auto settings = options_for(program);
  settings.max_processes = cap;
  settings.spares = 2;
  running_proxy proxy(settings);
  watcher watched(program);
  std::map<int, int> statuses;
  std::mutex mutex;
  std::vector<std::thread> crowd;
  for (int i = 0; i < 200; ++i) {
    crowd.emplace_back([&, i] {
      auto body = chat_asking("text n=5 delay_ms=2", i % 2 == 0);
      if (i % 5 == 0) body["model"] = "claude-other";
      const auto got = proxy.chat(body);
      const std::lock_guard<std::mutex> lock(mutex);
      ++statuses[got.complete ? got.status : 0];
      if (got.status == 429) CHECK_FALSE(got.header("retry-after").empty());
    });
  }
  for (auto& each : crowd) each.join();
  CHECK(statuses[200] + statuses[429] == 200);
  CHECK(statuses[200] >= cap);
  CHECK(watched.most() <= cap);
  CHECK(watched.rounds() > 3);
  CHECK(eventually([&] { return health(proxy)["busy"] == 0; }));
}

TEST_CASE(
    "server: a request is answered by a spare that was there before, and another is started") {
  const stand_in program;
  auto settings = options_for(program);
  settings.spares = 1;
  running_proxy proxy(settings);
  REQUIRE(eventually([&] { return health(proxy)["warm"] == 1; }));
  const auto spares = program.live();
  REQUIRE(spares.size() == 1);
  CHECK(pid_in(proxy.chat(chat_asking("echo"))) == spares.front());
  CHECK(eventually([&] {
    const auto live = program.live();
    return live.size() == 1 && live.front() != spares.front() && health(proxy)["warm"] == 1;
  }));
}

TEST_CASE("server: where no idle process is kept, each answer has a process of its own") {
  const stand_in program;
  auto settings = options_for(program);
  settings.spares = 1;
  running_proxy proxy(settings);
  std::set<pid_t> pids;
  for (int i = 0; i < 10; ++i) pids.insert(pid_in(proxy.chat(chat_asking("echo"))));
  CHECK(pids.size() == 10);
}

TEST_CASE("server: 5 MB go in and come back, streamed and not, from a slow reader") {
  const stand_in program;
  running_proxy proxy(options_for(program));
  program.configure("slow_reader chunk=65536 pause_ms=1\nwrite_before_read bytes=400000\n");
  const std::string large(5'000'000, 'm');
  for (const bool stream : {false, true}) {
    auto body = chat_asking("echo", stream);
    const json first{{"role", "user"}, {"content", large}};
    body["messages"].insert(body["messages"].begin(), first);
    const auto got = proxy.chat(body);
    REQUIRE(got.status == 200);
    const auto text = stream ? streamed_text(got.body)
                             : got.parsed()["choices"][0]["message"]["content"].get<std::string>();
    CHECK(json::parse(text)["history"].dump().find(large) != std::string::npos);
  }
}

TEST_CASE("server: a prompt is nowhere but in the pipe: not in argv, not in the environment") {
  const stand_in program;
  auto settings = options_for(program);
  settings.api_keys = {"client-key-1"};
  settings.environment["API_KEY"] = "client-key-1";
  running_proxy proxy(settings);
  auto body = chat_asking("hang after=1", true);
  const json system{{"role", "system"}, {"content", "secret-word-in-the-prompt"}};
  body["messages"].insert(body["messages"].begin(), system);
  connection client(proxy.port());
  client.post("/v1/chat/completions", body.dump(), "Authorization: Bearer client-key-1\r\n");
  REQUIRE(client.wait_for("w0"));
  const auto live = program.live();
  REQUIRE(live.size() == 1);
  for (const auto* what : {"cmdline", "environ"}) {
    std::ifstream file("/proc/" + std::to_string(live.front()) + "/" + what);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    CHECK_FALSE(bytes.empty());
    CHECK(bytes.find("secret-word") == std::string::npos);
    CHECK(bytes.find("client-key-1") == std::string::npos);
  }
}

TEST_CASE("server: /health is instant while every process is busy and many wait") {
  const stand_in program;
  auto settings = options_for(program);
  settings.max_processes = 2;
  running_proxy proxy(settings);
  std::vector<std::unique_ptr<connection>> clients;
  for (int i = 0; i < 40; ++i) {
    clients.push_back(std::make_unique<connection>(proxy.port()));
    clients.back()->post("/v1/chat/completions", chat_asking("hang after=1", true).dump());
  }
  REQUIRE(eventually([&] { return program.live().size() == 2; }));
  check_health_is_instant(proxy, 20);
}

TEST_CASE("server: 256 idle kept-alive connections starve nobody") {
  const stand_in program;
  running_proxy proxy(options_for(program));
  std::vector<std::unique_ptr<connection>> idle;
  for (int i = 0; i < 256; ++i) {
    idle.push_back(std::make_unique<connection>(proxy.port()));
    REQUIRE(idle.back()->connected());
    idle.back()->get("/health");
    REQUIRE(idle.back()->answer().status == 200);
  }
  check_health_is_instant(proxy, 5);
  const auto start = steady::now();
  CHECK(proxy.chat(chat_asking("text say=hi")).status == 200);
  CHECK(elapsed_since(start) < 2s * patience);
  idle[100]->get("/version");
  CHECK(idle[100]->answer().status == 200);
}

TEST_CASE("server: 64 streams at once come through whole, and do not starve /health") {
  const stand_in program;
  auto settings = options_for(program);
  settings.max_processes = 64;
  running_proxy proxy(settings);
  std::atomic<int> whole{0};
  std::vector<std::thread> crowd;
  for (int i = 0; i < 64; ++i) {
    crowd.emplace_back([&, i] {
      const auto word = "stream-" + std::to_string(i);
      const auto got =
          proxy.chat(chat_asking("text say=\"" + word + " a b c d e f g\" delay_ms=10", true));
      whole += streamed_text(got.body) == word + " a b c d e f g";
    });
  }
  check_health_is_instant(proxy, 10);
  for (auto& each : crowd) each.join();
  CHECK(whole == 64);
}

TEST_CASE("server: several requests follow each other on one connection, errors between them") {
  const stand_in program;
  running_proxy proxy(options_for(program));
  connection client(proxy.port());
  for (int i = 0; i < 3; ++i) {
    client.post("/v1/chat/completions", chat_asking("text say=fine").dump());
    CHECK(client.answer().status == 200);
    client.post("/v1/chat/completions", chat_asking("crash").dump());
    CHECK(client.answer().status == 502);
    client.post("/v1/chat/completions", chat_asking("text say=fine", true).dump());
    CHECK(streamed_text(client.answer().body) == "fine");
    client.get("/health");
    CHECK(client.answer().status == 200);
  }
}

TEST_CASE("server: over max_connections the client that is silent longest makes room") {
  const stand_in program;
  auto settings = options_for(program);
  settings.max_connections = 3;
  // On a busy machine a thread may be late to wait for its client, which is then not silent longest.
  bool first_made_room = false;
  for (int attempt = 0; attempt < 5 && !first_made_room; ++attempt) {
    running_proxy proxy(settings);
    std::vector<std::unique_ptr<connection>> held;
    for (int i = 0; i < 3; ++i) {
      held.push_back(std::make_unique<connection>(proxy.port()));
      held.back()->get("/health");
      REQUIRE(held.back()->answer().status == 200);
      std::this_thread::sleep_for(100ms * slowness);
    }
    connection fourth(proxy.port());
    fourth.get("/health");
    CHECK(fourth.answer().status == 200);
    first_made_room = held[0]->closed_by_peer(1s);
    if (!first_made_room) continue;
    held[2]->get("/health");
    CHECK(held[2]->answer().status == 200);
  }
  CHECK(first_made_room);
}

TEST_CASE("server: where all connections are at work the next client is turned away") {
  const stand_in program;
  auto settings = options_for(program);
  settings.max_connections = 2;
  running_proxy proxy(settings);
  std::vector<std::unique_ptr<connection>> busy;
  for (int i = 0; i < 2; ++i) {
    busy.push_back(std::make_unique<connection>(proxy.port()));
    busy.back()->post("/v1/chat/completions", chat_asking("hang").dump());
  }
  REQUIRE(eventually([&] { return program.live().size() == 2; }));
  {
    connection third(proxy.port());
    third.get("/health");
    CHECK(third.closed_by_peer());
  }
  busy.pop_back();
  CHECK(eventually([&] { return proxy.get("/health").status == 200; }));
}

// Not under a sanitizer: ubsan looks at objects through a pipe of its own.
TEST_CASE("server: without a free descriptor a request fails as one, and the next ones are well" *
          doctest::skip(slowness > 1)) {
  const stand_in program;
  running_proxy proxy(options_for(program));
  rlimit usual{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &usual) == 0);
  REQUIRE(program.gone());
  const auto before = resources_now();
  int served = 0, failed = 0;
  for (rlim_t limit = 8; limit < 60; ++limit) {
    CAPTURE(limit);
    connection client(proxy.port());
    client.get("/health");
    REQUIRE(client.answer().status == 200);
    rlimit tight = usual;
    tight.rlim_cur = limit;
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &tight) == 0);
    client.post("/v1/chat/completions", chat_asking("text n=1").dump());
    const auto got = client.answer();
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &usual) == 0);
    REQUIRE(got.complete);
    if (got.status == 200) {
      ++served;
    } else {
      ++failed;
      CHECK((got.status == 503 || got.status == 500));
      check_error_body(got.parsed(), "");
    }
    CHECK(program.gone());
  }
  CHECK(served > 5);
  CHECK(failed > 5);
  CHECK(eventually([&] { return resources_now().descriptors <= before.descriptors; }));
}
