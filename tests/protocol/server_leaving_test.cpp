// Clients that leave, servers that end: the processes, descriptors and threads go with them.
#include "proxy_support.hpp"

using namespace protocol_test;

namespace {

/// Waits until a request's process is there, and gives its id.
pid_t wait_for_process(const stand_in& program, int started_before) {
  REQUIRE(eventually([&] { return program.started() > started_before; }));
  return program.sessions().back();
}

bool is_gone_within(pid_t pid, milliseconds within) {
  return eventually([&] { return process_state(pid) == '\0'; }, within);
}

struct moment {
  std::string what, wish, configuration;
};

}  // namespace

TEST_CASE("server: a client that leaves frees its process within a second, at any moment") {
  const stand_in program;
  running_proxy proxy(options_for(program));
  for (const auto& each : {
           moment{"before an answer", "hang", ""},
           moment{"in mid-answer", "hang after=2", ""},
           moment{"while deltas flow", "text n=100000 delay_ms=2", ""},
           moment{"while the process starts", "text", "never_warm\n"},
           moment{"while it initializes", "text", "no_answer_to_initialize\nhang_in_replay\n"},
           moment{"while history is told", "text", "hang_in_replay\n"},
           moment{"from a deaf process", "hang", "ignore_sigterm\nignore_eof\n"},
       }) {
    for (const bool stream : {false, true}) {
      for (const bool abruptly : {false, true}) {
        CAPTURE(each.what);
        CAPTURE(stream);
        CAPTURE(abruptly);
        program.configure(each.configuration);
        const auto before = program.started();
        connection client(proxy.port());
        client.post("/v1/chat/completions", chat_with_past(each.wish, stream).dump());
        const auto pid = wait_for_process(program, before);
        if (stream && each.wish == "hang after=2")
          REQUIRE(client.wait_for("w1"));
        else
          std::this_thread::sleep_for(20ms);
        if (abruptly)
          client.abort();
        else
          client.close();
        CHECK(is_gone_within(pid, 1s));
      }
    }
  }
}

TEST_CASE("server: a client that stops reading a long stream and then leaves frees its process") {
  const stand_in program;
  running_proxy proxy(options_for(program));
  const auto before = program.started();
  connection client(proxy.port());
  client.post("/v1/chat/completions", chat_asking("text n=100000 size=2000", true).dump());
  const auto pid = wait_for_process(program, before);
  REQUIRE(client.wait_for("w1"));
  std::this_thread::sleep_for(300ms);  // by now every buffer on the way is full
  CHECK(process_state(pid) != '\0');
  client.close();
  CHECK(is_gone_within(pid, 1s));
}

TEST_CASE("server: a slow reader slows the process instead of filling the proxy's memory") {
  const stand_in program;
  running_proxy proxy(options_for(program));
  const auto resident_kib = [] {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
      if (line.rfind("VmRSS:", 0) == 0) return std::atol(line.c_str() + 6);
    }
    return 0L;
  };
  const auto before = resident_kib();
  connection client(proxy.port());
  client.post("/v1/chat/completions",
              chat_asking("text n=60000 size=2000", true).dump());  // 120 MB
  REQUIRE(client.wait_for("w1"));
  std::this_thread::sleep_for(1s);
  CHECK(resident_kib() - before < 60'000 * slowness);
}

TEST_CASE("server: on --timeout the answer is a 504, and the process is gone, deaf or not") {
  for (const std::string configuration : {"", "ignore_sigterm\nignore_eof\n"}) {
    const stand_in program;
    auto settings = options_for(program);
    settings.timeout = 500ms * slowness;
    running_proxy proxy(settings);
    program.configure(configuration);
    const auto before = program.started();
    const auto start = steady::now();
    const auto got = proxy.chat(chat_asking("hang"));
    CHECK(got.status == 504);
    CHECK(elapsed_since(start) >= 500ms);
    CHECK(elapsed_since(start) < 1500ms * patience);
    REQUIRE(program.started() == before + 1);
    CHECK(program.gone());
  }
}

TEST_CASE("server: a stream whose client is patient is timed out in-band") {
  const stand_in program;
  auto settings = options_for(program);
  settings.timeout = 600ms * slowness;
  settings.keep_alive_interval = 100ms * slowness;
  running_proxy proxy(settings);
  const auto got = proxy.chat(chat_asking("hang", true));
  CHECK(got.status == 200);  // it was told that somebody is there
  const auto payloads = payloads_of(got.body);
  REQUIRE(payloads.size() == 2);
  check_error_body(json::parse(payloads[0]), "--timeout");
  CHECK(payloads[1] == "[DONE]");
  CHECK(program.gone());
}

TEST_CASE("server: silence in a stream is filled with comments, before and between its words") {
  const stand_in program;
  auto settings = options_for(program);
  settings.keep_alive_interval = 50ms * slowness;
  running_proxy proxy(settings);
  const auto wish = "text say=\"slow words\" first_ms=" + std::to_string(280 * slowness) +
                    " delay_ms=" + std::to_string(280 * slowness);
  const auto got = proxy.chat(chat_asking(wish, true));
  CHECK(streamed_text(got.body) == "slow words");
  const auto first_word = got.body.find("slow");
  REQUIRE(first_word != std::string::npos);
  const auto count = [](const std::string& text) {
    int comments = 0;
    for (size_t at = 0; (at = text.find(": keep-alive\n\n", at)) != std::string::npos; ++at)
      ++comments;
    return comments;
  };
  const auto early = count(got.body.substr(0, first_word));
  const auto late = count(got.body.substr(first_word));
  CHECK(early >= 3);
  CHECK(early <= 6);
  CHECK(late >= 3);
  CHECK(late <= 6);
}

TEST_CASE("server: a thousand aborted requests leave no process, descriptor or thread behind") {
  const stand_in program;
  auto settings = options_for(program);
  settings.max_processes = 6;
  settings.spares = 2;
  running_proxy proxy(settings);
  const auto warm = [&] { return proxy.get("/health").parsed()["processes"]["warm"] == 2; };
  REQUIRE(eventually(warm));
  const auto before = resources_now();
  watcher watched(program);
  constexpr int clients = 4;
  std::atomic<int> aborted{0};
  std::vector<std::thread> crowd;
  for (int c = 0; c < clients; ++c) {
    crowd.emplace_back([&, c] {
      for (int i = 0; i < 1000 / clients; ++i) {
        // Every fourth is well under way when its client leaves, the others are anywhere.
        const bool under_way = i % 4 == 0;
        const auto* wish = under_way || i % 3 == 1 ? "hang after=1"
                           : i % 3 == 0            ? "hang"
                                                   : "text n=500 delay_ms=1";
        connection client(proxy.port());
        if (!client.connected()) continue;
        client.post("/v1/chat/completions", chat_with_past(wish, under_way || i % 2 == 0).dump());
        if (under_way && !client.wait_for("w0")) continue;
        if (!under_way) std::this_thread::sleep_for(milliseconds((i * 7 + c) % 12));
        if (i % 5 < 3)
          client.abort();
        else
          client.close();
        ++aborted;
      }
    });
  }
  for (auto& each : crowd) each.join();
  CHECK(aborted == 1000);
  CHECK(eventually([&] { return program.live().size() == 2 && program.zombies() == 0 && warm(); },
                   20s));
  CHECK(eventually([&] {
    const auto now = resources_now();  // the watcher's thread is one more
    return now.descriptors <= before.descriptors && now.threads <= before.threads + 1;
  }));
  CHECK(watched.most() <= 6);
  CHECK(program.started() >= 250);  // it was no empty exercise
  CHECK(proxy.chat(chat_asking("text say=fine")).status == 200);
}

TEST_CASE("server: its end leaves nothing, whatever is under way") {
  const stand_in program;
  const auto before = resources_now();
  std::vector<std::unique_ptr<connection>> clients;
  {
    auto settings = options_for(program);
    settings.spares = 2;
    running_proxy proxy(settings);
    for (const auto* wish : {"hang", "hang after=1", "text n=100000 delay_ms=1",
                             "hang]] [[ignore_sigterm]] [[ignore_eof", "hang]] [[grandchild"}) {
      clients.push_back(std::make_unique<connection>(proxy.port()));
      clients.back()->post("/v1/chat/completions", chat_asking(wish, true).dump());
    }
    clients.push_back(std::make_unique<connection>(proxy.port()));  // one that says nothing
    REQUIRE(eventually([&] { return program.live().size() >= 5; }));
    const auto start = steady::now();
    proxy.stop();
    CHECK(elapsed_since(start) < 3s * patience);
  }
  CHECK(program.live().empty());
  CHECK(program.zombies() == 0);
  for (const auto pid : program.sessions()) CHECK(members_of_group(pid) == 0);
  clients.clear();
  CHECK(eventually([&] {
    const auto now = resources_now();
    return now.descriptors == before.descriptors && now.threads == before.threads;
  }));
}

TEST_CASE("server: told to stop, it finishes what runs, takes no more, and ends") {
  const stand_in program;
  running_proxy proxy(options_for(program));
  connection running(proxy.port());
  running.post("/v1/chat/completions",
               chat_asking("text say=\"to the end\" delay_ms=150", true).dump());
  REQUIRE(running.wait_for("to"));
  const auto port = proxy.port();
  std::thread stopping([&] { proxy.server().stop(); });
  stopping.join();
  CHECK(eventually([&] { return !connection(port).connected(); }));
  const auto got = running.answer();
  CHECK(got.complete);
  CHECK(streamed_text(got.body) == "to the end");
  CHECK(running.closed_by_peer());
}

TEST_CASE("server: a stop that takes too long cuts what still runs") {
  const stand_in program;
  auto settings = options_for(program);
  settings.drain_timeout = 300ms;
  running_proxy proxy(settings);
  connection running(proxy.port());
  running.post("/v1/chat/completions", chat_asking("hang after=1", true).dump());
  REQUIRE(running.wait_for("w0"));
  const auto start = steady::now();
  proxy.server().stop();
  CHECK(running.closed_by_peer());
  CHECK(elapsed_since(start) >= 300ms);
  CHECK(elapsed_since(start) < 2s * patience);
  CHECK(program.gone());
}

TEST_CASE("server: a second stop ends what runs at once, however quickly it follows") {
  for (const auto pause : {0ms, 50ms}) {
    const stand_in program;
    auto settings = options_for(program);
    settings.drain_timeout = 20s;
    running_proxy proxy(settings);
    connection running(proxy.port());
    running.post("/v1/chat/completions", chat_asking("hang after=1", true).dump());
    REQUIRE(running.wait_for("w0"));
    const auto start = steady::now();
    proxy.server().stop();
    std::this_thread::sleep_for(pause);
    proxy.server().stop();
    CHECK(running.closed_by_peer());
    CHECK(elapsed_since(start) < 2s * patience);
  }
}
