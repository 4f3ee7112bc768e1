// Conversations that live: who goes on with which process, what it is told, and that no word of one
// conversation ever reaches another.
#include "proxy_support.hpp"

#include <random>

#include <sys/stat.h>

using namespace protocol_test;

namespace {

claude_openai::options living(const stand_in& program, int maximum = 8) {
  auto settings = options_for(program);
  settings.idle_timeout = 60s;
  settings.max_processes = maximum;
  return settings;
}

/// A client that keeps the history itself and sends all of it each time.
class stateless_chat {
 public:
  explicit stateless_chat(const running_proxy& proxy, const std::string& system = "")
      : proxy_(&proxy) {
    if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  }

  json messages = json::array();
  std::string headers;
  std::string model = "claude-test";

  http_answer send(const std::string& words, bool stream = false) {
    messages.push_back({{"role", "user"}, {"content", words}});
    json body{{"model", model}, {"messages", messages}};
    if (stream) body["stream"] = true;
    return proxy_->ask("/v1/chat/completions", body.dump(), headers);
  }

  /// One turn that goes well; its text.
  std::string say(const std::string& words, bool stream = false) {
    const auto got = send(words, stream);
    REQUIRE_MESSAGE(got.status == 200, got.body);
    const auto text = stream ? streamed_text(got.body)
                             : got.parsed()["choices"][0]["message"]["content"].get<std::string>();
    messages.push_back({{"role", "assistant"}, {"content", text}});
    return text;
  }

  /// What the process that answers knows.
  json who(const std::string& words = "") {
    const auto answer = json::parse(say("[[who]] " + words), nullptr, false);
    REQUIRE(answer.is_object());
    return answer;
  }

 private:
  const running_proxy* proxy_;
};

/// A client that leaves the history to the proxy.
struct session_chat {
  const running_proxy* proxy;
  std::string id;
  std::string headers{};

  http_answer send(const std::string& words) const {
    const json body{{"model", "claude-test"},
                    {"session_id", id},
                    {"messages", {{{"role", "user"}, {"content", words}}}}};
    return proxy->ask("/v1/chat/completions", body.dump(), headers);
  }
  json who(const std::string& words = "") const {
    const auto got = send("[[who]] " + words);
    REQUIRE_MESSAGE(got.status == 200, got.body);
    return json::parse(got.parsed()["choices"][0]["message"]["content"].get<std::string>());
  }
  /// Every message that the answering process has been told, this one included, with its role.
  std::vector<std::string> told() const {
    const auto got = send("[[echo]]");
    REQUIRE_MESSAGE(got.status == 200, got.body);
    const auto echo =
        json::parse(got.parsed()["choices"][0]["message"]["content"].get<std::string>());
    std::vector<std::string> lines;
    for (const auto& said : echo["history"]) {
      const auto& content = said["content"];
      const auto words = content.is_string() ? content : content[0]["text"];
      lines.push_back(said["role"].get<std::string>() + ": " + words.get<std::string>());
    }
    return lines;
  }
};

json get(const running_proxy& proxy, const std::string& path, const std::string& headers = "") {
  connection client(proxy.port());
  client.write("GET " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers + "\r\n");
  return client.answer().parsed();
}

http_answer remove(const running_proxy& proxy, const std::string& path,
                   const std::string& headers = "") {
  connection client(proxy.port());
  client.write("DELETE " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\n" + headers + "\r\n");
  return client.answer();
}

void kill_and_wait(pid_t pid) {
  ::kill(pid, SIGKILL);
  REQUIRE(eventually([&] { return process_state(pid) == '\0'; }));
}

}  // namespace

TEST_CASE("conversations: 20 turns of a stateless client are one process, told each word once") {
  const stand_in program;
  const running_proxy proxy(living(program));
  const auto before = program.started();
  stateless_chat chat(proxy);
  const auto pid = chat.who()["pid"];
  for (int turn = 2; turn <= 20; ++turn) {
    const auto known = chat.who();
    CHECK(known["pid"] == pid);
    CHECK(known["turn"] == turn);
    CHECK(known["messages"] == 2 * turn - 1);
  }
  CHECK(program.started() == before + 1);
}

TEST_CASE("conversations: streamed and whole answers go on with the same process") {
  const stand_in program;
  const running_proxy proxy(living(program));
  stateless_chat chat(proxy);
  const auto pid = chat.who()["pid"];
  CHECK(chat.say("[[text n=4]]", true) == "w0 w1 w2 w3");
  CHECK(chat.who()["pid"] == pid);
  CHECK(chat.say("[[thinking]]", true) == "w0 w1 w2");
  CHECK(chat.who()["pid"] == pid);
}

TEST_CASE("conversations: both branches of a chat are answered rightly, by one process") {
  const stand_in program;
  const running_proxy proxy(living(program));
  const auto before = program.started();
  stateless_chat chat(proxy);
  const auto trunk = chat.who("secret-1")["pid"];
  auto branch = chat;
  CHECK(chat.who("secret-2")["pid"] == trunk);
  const auto other = branch.who("secret-3");
  CHECK(other["pid"] == trunk);
  CHECK(other["messages"] == 3);
  CHECK(other["secrets"] == json::array({"secret-1", "secret-3"}));
  const auto on = chat.who();
  CHECK(on["messages"] == 5);
  CHECK(on["secrets"] == json::array({"secret-1", "secret-2"}));
  const auto back = branch.who();
  CHECK(back["messages"] == 5);
  CHECK(back["secrets"] == json::array({"secret-1", "secret-3"}));
  CHECK(program.started() == before + 1);
}

TEST_CASE("conversations: a regenerated answer comes from the same process, streamed or not") {
  const stand_in program;
  const running_proxy proxy(living(program));
  stateless_chat chat(proxy);
  const auto first = chat.who("secret-1");
  chat.who("secret-2");
  for (const bool stream : {false, true}) {
    chat.messages.erase(chat.messages.size() - 1);
    const auto asked = chat.messages.back()["content"].get<std::string>();
    chat.messages.erase(chat.messages.size() - 1);
    const auto again = json::parse(chat.say(asked, stream), nullptr, false);
    CHECK(again["pid"] == first["pid"]);
    CHECK(again["messages"] == 3);
    CHECK(again["secrets"] == json::array({"secret-1", "secret-2"}));
  }
}

TEST_CASE("conversations: one-off questions are one process's, which forgets each of them") {
  const stand_in program;
  const running_proxy proxy(living(program));
  const auto before = program.started();
  for (int i = 1; i <= 10; ++i) {
    const auto secret = "secret-" + std::to_string(i);
    const auto known = stateless_chat(proxy, "Give it a title.").who(secret);
    CHECK(known["messages"] == 1);
    CHECK(known["secrets"] == json::array({secret}));
  }
  CHECK(program.started() == before + 1);
  const auto figures = proxy.get("/metrics").body;
  CHECK(figures.find("turns_total{process=\"rewound\"} 9\n") != std::string::npos);
  CHECK(figures.find("messages_rewound_total 9\n") != std::string::npos);
}

TEST_CASE("conversations: changed messages are taken back; all else that changes another's") {
  const stand_in program;
  auto settings = living(program);
  settings.api_keys = {"key-one", "key-two"};
  const running_proxy proxy(settings);
  stateless_chat chat(proxy);
  chat.headers = "Authorization: Bearer key-one\r\n";
  chat.messages.push_back({{"role", "system"}, {"content", "Be one."}});
  const auto pid = chat.who()["pid"];
  auto same = chat;
  bool stays = false;
  SUBCASE("an earlier message") {
    chat.messages[1]["content"] = chat.messages[1]["content"].get<std::string>() + "edited";
    stays = true;
  }
  SUBCASE("an earlier reply") {
    chat.messages[2]["content"] = "You said something else.";
    stays = true;
  }
  SUBCASE("the system prompt") { chat.messages[0]["content"] = "Be another."; }
  SUBCASE("the model") { chat.model = "claude-other"; }
  SUBCASE("the client key") { chat.headers = "Authorization: Bearer key-two\r\n"; }
  const auto changed = chat.who();
  CHECK((changed["pid"] == pid) == stays);
  CHECK(changed["messages"] == 3);
  const auto unchanged = same.who();
  CHECK(unchanged["pid"] == pid);
  CHECK(unchanged["messages"] == 3);
}

TEST_CASE("conversations: after its process died, a chat loses nothing and doubles nothing") {
  const stand_in program;
  const running_proxy proxy(living(program));
  stateless_chat chat(proxy);
  for (int turn = 1; turn <= 6; ++turn) {
    const auto known = chat.who("secret-" + std::to_string(turn));
    CHECK(known["messages"] == 2 * turn - 1);
    CHECK(known["secrets"].size() == static_cast<std::size_t>(turn));
    if (turn % 2 == 0) kill_and_wait(known["pid"].get<pid_t>());
  }
}

TEST_CASE("conversations: a process that dies at the moment it is asked is replaced") {
  const stand_in program;
  const running_proxy proxy(living(program));
  stateless_chat chat(proxy);
  for (int i = 0; i < 10; ++i) {
    const auto pid = chat.who()["pid"].get<pid_t>();
    ::kill(pid, SIGKILL);  // the proxy may or may not have noticed
    CHECK(chat.who()["messages"] == 4 * i + 3);
  }
}

TEST_CASE("conversations: a failed turn leaves no trace in what comes after") {
  const stand_in program;
  const running_proxy proxy(living(program));
  for (const std::string wish : {"crash after=1", "api_error status=529", "malformed", "exit_zero",
                                 "retry_midstream how=different"}) {
    CAPTURE(wish);
    stateless_chat chat(proxy);
    chat.who();
    CHECK(chat.send(told(wish), true).body.find("\"error\"") != std::string::npos);
    chat.messages.erase(chat.messages.size() - 1);
    const auto known = chat.who();
    CHECK(known["messages"] == 3);
  }
}

TEST_CASE("conversations: a process that goes on by itself after a cut answer is not used again") {
  const stand_in program;
  const running_proxy proxy(living(program));
  for (const std::string wish : {"max_tokens", "refusal"}) {
    CAPTURE(wish);
    stateless_chat chat(proxy);
    const auto pid = chat.who()["pid"];
    CHECK(chat.say("[[" + wish + " say=\"as far as\"]]") == "as far as");
    const auto known = chat.who();
    CHECK(known["pid"] != pid);
    CHECK(known["messages"] == 5);
  }
}

TEST_CASE("conversations: what a client leaves in mid-answer is taken back, and disturbs nobody") {
  const stand_in program;
  const running_proxy proxy(living(program));
  stateless_chat chat(proxy);
  const auto pid = chat.who()["pid"].get<pid_t>();
  stateless_chat bystander(proxy, "Be another.");
  const auto other = bystander.who()["pid"];
  const auto at_rest = [&] {
    const auto processes = proxy.get("/health").parsed()["processes"];
    return processes["idle"] == 2 && processes["busy"] == 0;
  };
  REQUIRE(eventually(at_rest));
  {
    connection client(proxy.port());
    auto messages = chat.messages;
    messages.push_back({{"role", "user"}, {"content", "[[hang after=2]]"}});
    client.post("/v1/chat/completions",
                json{{"model", "claude-test"}, {"stream", true}, {"messages", messages}}.dump());
    REQUIRE(client.wait_for("w1"));
  }
  REQUIRE(eventually(at_rest));
  const auto known = chat.who();
  CHECK(known["pid"] == pid);
  CHECK(known["messages"] == 3);
  CHECK(bystander.who()["pid"] == other);
}

TEST_CASE("conversations: idle processes end after the idle timeout, and cost a replay") {
  const stand_in program;
  auto settings = living(program);
  settings.idle_timeout = 300ms * slowness;
  const running_proxy proxy(settings);
  stateless_chat chat(proxy);
  const auto pid = chat.who()["pid"].get<pid_t>();
  CHECK(process_state(pid) != '\0');
  CHECK(eventually([&] { return process_state(pid) == '\0'; }));
  CHECK(chat.who()["messages"] == 3);
}

TEST_CASE("conversations: at the cap the least recently used makes room, and is not lost") {
  const stand_in program;
  const running_proxy proxy(living(program, 3));
  watcher watched(program);
  std::vector<stateless_chat> chats;
  for (const auto* system : {"a", "b", "c", "d"}) chats.emplace_back(proxy, system);
  std::vector<json> pids(4);
  for (std::size_t i : {0U, 1U, 2U}) pids[i] = chats[i].who()["pid"];
  CHECK(chats[0].who()["pid"] == pids[0]);  // now 1 is the oldest
  pids[3] = chats[3].who()["pid"];
  CHECK(chats[0].who()["pid"] == pids[0]);
  CHECK(chats[2].who()["pid"] == pids[2]);
  CHECK(chats[3].who()["pid"] == pids[3]);
  const auto back = chats[1].who();
  CHECK(back["pid"] != pids[1]);
  CHECK(back["messages"] == 3);
  CHECK(watched.most() <= 3);
}

TEST_CASE("conversations: a process that talks, floods or dies while idle disturbs nobody") {
  const stand_in program;
  const running_proxy proxy(living(program));
  stateless_chat chat(proxy);
  chat.say("[[text]] [[grandchild ms=3000]] [[stderr_flood bytes=300000]]");
  CHECK(chat.who()["messages"] == 3);
  CHECK(proxy.get("/health").parsed()["processes"]["idle"] == 1);
}

TEST_CASE("conversations: an idle proxy uses no processor time") {
  const stand_in program;
  auto settings = living(program);
  settings.spares = 2;
  const running_proxy proxy(settings);
  stateless_chat chat(proxy);
  chat.who();
  REQUIRE(eventually([&] { return proxy.get("/health").parsed()["processes"]["warm"] == 2; }));
  std::this_thread::sleep_for(300ms);
  const auto before = processor_time();
  std::this_thread::sleep_for(500ms);
  CHECK((processor_time() - before).count() < 50);
}

TEST_CASE("conversations: no word of one conversation ever reaches another") {
  // Seeded; the threads' interleaving is not, so every run is another.
  const stand_in program;
  auto settings = living(program, 6);
  settings.spares = 2;
  settings.max_queue = 200;
  const running_proxy proxy(settings);
  std::atomic<int> turns{0}, strange{0}, failed{0};
  std::atomic<bool> ended{false};
  std::vector<std::thread> crowd;
  for (unsigned id = 0; id < 24; ++id) {
    crowd.emplace_back([&, id] {
      std::mt19937 random(20261122 + id);
      stateless_chat chat(proxy);
      const auto secret = "secret-" + std::to_string(1000 + id);
      for (int turn = 0; turn < 8; ++turn) {
        chat.messages.push_back({{"role", "user"}, {"content", "[[who]] " + secret}});
        json body{{"model", "claude-test"}, {"messages", chat.messages}};
        connection client(proxy.port());
        client.post("/v1/chat/completions", body.dump());
        if (random() % 5 == 0) {  // leaves, and asks again
          std::this_thread::sleep_for(milliseconds(random() % 8));
          client.abort();
          chat.messages.erase(chat.messages.size() - 1);
          continue;
        }
        const auto got = client.answer();
        const auto text = got.status != 200
                              ? std::string()
                              : got.parsed()["choices"][0]["message"]["content"].get<std::string>();
        const auto known = json::parse(text, nullptr, false);
        if (!known.is_object()) {  // killed under it
          ++failed;
          chat.messages.erase(chat.messages.size() - 1);
          continue;
        }
        ++turns;
        const bool right =
            known["secrets"] == json::array({secret}) && known["messages"] == chat.messages.size();
        strange += right ? 0 : 1;
        chat.messages.push_back({{"role", "assistant"}, {"content", text}});
      }
    });
  }
  std::thread killer([&] {
    std::mt19937 random(7);
    for (int i = 0; i < 400 && !ended; ++i) {
      const auto live = program.live();
      if (!live.empty()) ::kill(live[random() % live.size()], SIGKILL);
      std::this_thread::sleep_for(milliseconds(random() % 20));
    }
  });
  for (auto& each : crowd) each.join();
  ended = true;
  killer.join();
  CHECK(strange == 0);
  CHECK(turns > 60);  // it was no empty exercise
  MESSAGE(turns.load() << " turns, " << failed.load() << " killed");
}

TEST_CASE("queue: 200 requests at once are all answered by four processes") {
  const stand_in program;
  auto settings = living(program, 4);
  settings.spares = 2;
  settings.max_queue = 200;
  const running_proxy proxy(settings);
  watcher watched(program);
  std::atomic<int> right{0};
  std::vector<std::thread> crowd;
  for (int i = 0; i < 200; ++i) {
    crowd.emplace_back([&, i] {
      const auto word = "answer-" + std::to_string(i);
      const auto got = proxy.chat(chat_asking("text say=" + word, i % 2 == 0));
      const auto text = i % 2 == 0 ? streamed_text(got.body)
                        : got.status == 200
                            ? got.parsed()["choices"][0]["message"]["content"].get<std::string>()
                            : got.body;
      right += text == word;
    });
  }
  for (auto& each : crowd) each.join();
  CHECK(right == 200);
  CHECK(watched.most() <= 4);
}

TEST_CASE("queue: whoever waits too long, or finds it full, is told when to come again") {
  const stand_in program;
  auto settings = living(program, 1);
  settings.max_queue = 1;
  settings.queue_timeout = 2s * slowness;
  const running_proxy proxy(settings);
  connection holder(proxy.port());
  holder.post("/v1/chat/completions", chat_asking("hang after=1", true).dump());
  REQUIRE(holder.wait_for("w0"));
  connection waiting(proxy.port());
  waiting.post("/v1/chat/completions", chat_asking("text").dump());
  REQUIRE(eventually([&] { return proxy.get("/health").parsed()["queued"] == 1; }));
  const auto full = proxy.chat(chat_asking("text"));
  CHECK(full.status == 429);
  check_error_body(full.parsed(), "queue is full");
  CHECK(std::stoi(full.header("retry-after")) >= 1);
  const auto late = waiting.answer();
  CHECK(late.status == 429);
  check_error_body(late.parsed(), "none was free in time");
  CHECK(proxy.get("/health").parsed()["queued"] == 0);
}

TEST_CASE("queue: a client that leaves while it waits leaves the queue, streamed or not") {
  const stand_in program;
  const running_proxy proxy(living(program, 1));
  connection holder(proxy.port());
  holder.post("/v1/chat/completions", chat_asking("hang after=1", true).dump());
  REQUIRE(holder.wait_for("w0"));
  for (const bool stream : {false, true}) {
    connection waiting(proxy.port());
    waiting.post("/v1/chat/completions", chat_asking("text", stream).dump());
    REQUIRE(eventually([&] { return proxy.get("/health").parsed()["queued"] == 1; }));
    waiting.close();
    CHECK(eventually([&] { return proxy.get("/health").parsed()["queued"] == 0; }));
  }
  holder.close();
  CHECK(proxy.chat(chat_asking("text")).status == 200);
}

TEST_CASE("queue: a stream that waits is kept alive by comments") {
  const stand_in program;
  auto settings = living(program, 1);
  settings.keep_alive_interval = 50ms * slowness;
  const running_proxy proxy(settings);
  auto holder = std::make_unique<connection>(proxy.port());
  holder->post("/v1/chat/completions", chat_asking("hang after=1", true).dump());
  REQUIRE(holder->wait_for("w0"));
  connection waiting(proxy.port());
  waiting.post("/v1/chat/completions", chat_asking("text say=finally", true).dump());
  REQUIRE(waiting.wait_for(": keep-alive\n\n"));
  holder.reset();
  const auto got = waiting.answer();
  CHECK(streamed_text(got.body) == "finally");
}

TEST_CASE("sessions: the proxy keeps the history, and the client sends only what is new") {
  const stand_in program;
  const running_proxy proxy(living(program));
  const session_chat chat{&proxy, "one"};
  const auto pid = chat.who()["pid"];
  for (int turn = 2; turn <= 5; ++turn) {
    const auto known = chat.who();
    CHECK(known["pid"] == pid);
    CHECK(known["messages"] == 2 * turn - 1);
  }
  kill_and_wait(pid.get<pid_t>());
  CHECK(chat.who()["messages"] == 11);
  CHECK(get(proxy, "/v1/sessions/one")["message_count"] == 12);
}

TEST_CASE("sessions: a client that sends the whole history with its id doubles nothing") {
  const stand_in program;
  const running_proxy proxy(living(program));
  const session_chat chat{&proxy, "one"};
  json messages = json::array();
  for (int turn = 1; turn <= 4; ++turn) {
    messages.push_back({{"role", "user"}, {"content", "[[who]] turn " + std::to_string(turn)}});
    const json body{{"model", "claude-test"}, {"session_id", "one"}, {"messages", messages}};
    const auto text = proxy.chat(body).parsed()["choices"][0]["message"]["content"];
    CHECK(json::parse(text.get<std::string>())["messages"] == 2 * turn - 1);
    messages.push_back({{"role", "assistant"}, {"content", text}});
  }
  CHECK(chat.who()["messages"] == 9);
}

TEST_CASE("sessions: a failed turn leaves the session as it was") {
  const stand_in program;
  const running_proxy proxy(living(program));
  const session_chat chat{&proxy, "one"};
  CHECK(chat.send("[[crash]]").status == 502);
  CHECK(get(proxy, "/v1/sessions/one").contains("error"));  // a failed first turn makes none
  chat.send("[[text say=first]]");
  for (const auto* wish : {"crash after=1", "api_error status=500", "malformed"}) {
    CHECK(chat.send(told(wish)).status >= 400);
  }
  {
    connection client(proxy.port());
    client.post("/v1/chat/completions",
                json{{"model", "claude-test"},
                     {"session_id", "one"},
                     {"stream", true},
                     {"messages", {{{"role", "user"}, {"content", "[[hang after=1]]"}}}}}
                    .dump());
    REQUIRE(client.wait_for("w0"));
  }
  const std::vector<std::string> expected{"user: [[text say=first]]", "assistant: first",
                                          "user: [[echo]]"};
  CHECK(chat.told() == expected);
}

TEST_CASE("sessions: requests of one session are answered one by one, in order") {
  const stand_in program;
  const running_proxy proxy(living(program));
  const session_chat chat{&proxy, "one"};
  chat.send("[[text say=start]]");
  std::vector<std::unique_ptr<connection>> clients;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(std::make_unique<connection>(proxy.port()));
    const auto words = "[[text say=\"a b c\" delay_ms=10]] " + std::to_string(i);
    clients.back()->post("/v1/chat/completions",
                         json{{"model", "claude-test"},
                              {"session_id", "one"},
                              {"messages", {{{"role", "user"}, {"content", words}}}}}
                             .dump());
    std::this_thread::sleep_for(20ms * slowness);  // so that their order is known
  }
  for (auto& client : clients) CHECK(client->answer().status == 200);
  const auto lines = chat.told();
  REQUIRE(lines.size() == 15);
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(lines[2 + 2 * i] == "user: [[text say=\"a b c\" delay_ms=10]] " + std::to_string(i));
    CHECK(lines[3 + 2 * i] == "assistant: a b c");
  }
}

TEST_CASE("sessions: a client that leaves while it waits for a session lets the next one in") {
  const stand_in program;
  const running_proxy proxy(living(program));
  const auto body = [](const std::string& wish) {
    return json{{"model", "claude-test"},
                {"session_id", "one"},
                {"messages", {{{"role", "user"}, {"content", told(wish)}}}}}
        .dump();
  };
  auto holder = std::make_unique<connection>(proxy.port());
  holder->post("/v1/chat/completions", body("hang"));
  REQUIRE(eventually([&] { return proxy.get("/health").parsed()["processes"]["busy"] == 1; }));
  auto second = std::make_unique<connection>(proxy.port());
  second->post("/v1/chat/completions", body("text say=second"));
  std::this_thread::sleep_for(50ms);
  connection third(proxy.port());
  third.post("/v1/chat/completions", body("text say=third"));
  std::this_thread::sleep_for(50ms);
  second.reset();
  std::this_thread::sleep_for(50ms);
  holder.reset();
  const auto got = third.answer();
  REQUIRE(got.status == 200);
  CHECK(got.parsed()["choices"][0]["message"]["content"] == "third");
}

TEST_CASE("sessions: each client key sees, uses and deletes only its own") {
  const stand_in program;
  auto settings = living(program);
  settings.api_keys = {"key-one", "key-two"};
  const running_proxy proxy(settings);
  const std::string one = "Authorization: Bearer key-one\r\n", two = "X-Api-Key: key-two\r\n";
  const session_chat mine{&proxy, "shared-name", one}, theirs{&proxy, "shared-name", two};
  mine.who("secret-1");
  CHECK(theirs.who("secret-2")["secrets"] == json::array({"secret-2"}));
  CHECK(mine.who()["secrets"] == json::array({"secret-1"}));
  CHECK(get(proxy, "/v1/sessions", one)["total"] == 1);
  CHECK(get(proxy, "/v1/sessions/stats", two)["session_stats"]["total_messages"] == 2);
  CHECK(remove(proxy, "/v1/sessions/shared-name", two).status == 200);
  CHECK(remove(proxy, "/v1/sessions/shared-name", two).status == 404);
  CHECK(mine.who()["messages"] == 5);
  CHECK(get(proxy, "/v1/sessions").contains("error"));
}

TEST_CASE("sessions: a deleted session is a new one when its id comes again") {
  const stand_in program;
  const running_proxy proxy(living(program));
  const session_chat chat{&proxy, "one two/\xC3\xBC"};
  chat.who("secret-1");
  CHECK(remove(proxy, "/v1/sessions/one%20two%2F%C3%BC").status == 200);
  const auto known = chat.who();
  CHECK(known["messages"] == 1);
  CHECK(known["secrets"].empty());
}

TEST_CASE("sessions: they survive a restart, privately, and torn files do no harm") {
  const stand_in program;
  auto settings = living(program);
  settings.session_directory = program.folder() + "/sessions";
  {
    const running_proxy proxy(settings);
    const session_chat chat{&proxy, "kept"};
    chat.who("secret-1");
    chat.who("secret-2");
    session_chat{&proxy, "other"}.who("secret-3");
  }
  const auto mode_of = [](const std::string& path) {
    struct stat info {};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    return info.st_mode & 0777;
  };
  CHECK(mode_of(settings.session_directory) == 0700);
  int files = 0;
  for (const auto& file : std::filesystem::directory_iterator(settings.session_directory)) {
    CHECK(mode_of(file.path()) == 0600);
    ++files;
  }
  CHECK(files == 2);  // the store, and the salt of client names
  std::ofstream(settings.session_directory + "/torn.json") << R"({"version":1,"id":"torn","mess)";
  std::ofstream(settings.session_directory + "/list.json") << "[1,2]";
  std::ofstream(settings.session_directory + "/wrong.json")
      << R"({"version":1,"client":"","id":"wrong","messages":"none"})";
  std::ofstream(settings.session_directory + "/empty.json");
  const running_proxy proxy(settings);
  CHECK(get(proxy, "/v1/sessions")["total"] == 2);
  const auto known = session_chat{&proxy, "kept"}.who();
  CHECK(known["messages"] == 5);
  CHECK(known["secrets"] == json::array({"secret-1", "secret-2"}));
}

TEST_CASE("sessions: one that nobody uses expires, of the store too") {
  const stand_in program;
  auto settings = living(program);
  settings.session_ttl = 2s * slowness;
  settings.session_directory = program.folder() + "/sessions";
  {
    const running_proxy proxy(settings);
    const session_chat chat{&proxy, "one"};
    chat.who("secret-1");
    CHECK(get(proxy, "/v1/sessions")["total"] == 1);
    std::this_thread::sleep_for(2100ms * slowness);
    CHECK(get(proxy, "/v1/sessions")["total"] == 0);
  }
  settings.session_ttl = 1h;
  const running_proxy proxy(settings);
  CHECK(get(proxy, "/v1/sessions")["total"] == 0);
  CHECK(session_chat{&proxy, "one"}.who()["secrets"].empty());
}
