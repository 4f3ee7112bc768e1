// [21] store: what holds for each of the places where state lies: memory, SQLite, Redis.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/support.hpp"
#include "tests/unit/redis_server.hpp"

using namespace claude_openai;
namespace files = std::filesystem;
using session_lock = session_store::session_lock;

namespace {

/// A place for state that lives as long as the test. `open` again is a restart, or another proxy.
class backend {
 public:
  explicit backend(std::string kind) : kind_(std::move(kind)) {
    settings.log =
        logger(log_level::debug, [this](log_level, const std::string& line) { log += line; });
    folder_ = files::temp_directory_path() / text::random_id("backend-", 16);
    files::create_directories(folder_);
    files::permissions(folder_, files::perms::owner_all);
    if (kind_ == "SQLite") settings.store = (folder_ / "state").string();
#ifdef CLAUDE_OPENAI_REDIS
    if (kind_ == "Redis") {
      redis = std::make_unique<redis_server>();
      settings.store = redis->url();
    }
#endif
  }
  backend(const backend&) = delete;
  backend& operator=(const backend&) = delete;
  ~backend() { files::remove_all(folder_); }

  std::shared_ptr<state_store> open() const { return open_store(settings); }
  const std::string& kind() const { return kind_; }

  options settings;
  std::string log;
#ifdef CLAUDE_OPENAI_REDIS
  std::unique_ptr<redis_server> redis;
#endif

 private:
  std::string kind_;
  files::path folder_;
};

/// Runs the rule for each backend that is there; those that keep nothing are left out if `lasting`.
void for_each_backend(bool lasting, const std::function<void(backend&)>& rule) {
  std::vector<std::string> kinds;
  if (!lasting) kinds.emplace_back("memory");
#ifdef CLAUDE_OPENAI_SQLITE
  kinds.emplace_back("SQLite");
#endif
#ifdef CLAUDE_OPENAI_REDIS
  if (has_redis()) kinds.emplace_back("Redis");
#endif
  for (const auto& kind : kinds) {
    CAPTURE(kind);
    backend here(kind);
    rule(here);
  }
}

std::vector<message> turn_of(const std::string& question, const std::string& answer) {
  return {message{role::user, {text_part{question}}},
          message{role::assistant, {text_part{answer}}}};
}

/// A turn as the engine makes it: behind the history. Returns how long that was.
std::size_t take_turn(session_store& store, const std::string& client, const std::string& id) {
  session_lock here(store, client, id);
  while (!here.try_enter()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  auto history = here.history();
  const auto before = history.size();
  for (auto& entry : turn_of("q", "a")) history.push_back(std::move(entry));
  here.commit("Be brief.", std::move(history));
  return before;
}

stored_record record(const std::string& client, const std::string& id, std::vector<json> items) {
  return {client, id, json::object({{"of", id}}), std::move(items)};
}

/// `1 {"of":"1"} [1,2]` for each of a client's records, in the order of their ids.
std::vector<std::string> records_of(state_store& store, const std::string& client) {
  std::vector<stored_record> all;
  if (store.is_shared()) {
    for (const auto& one : store.list("kind", client)) {
      all.push_back(store.fetch("kind", client, one.id).value());
    }
  } else {
    for (auto& one : store.read("kind")) {
      if (one.client == client) all.push_back(std::move(one));
    }
  }
  std::vector<std::string> found;
  for (const auto& one : all) {
    found.push_back(one.id + " " + one.head.dump() + " " + json(one.items).dump());
  }
  std::sort(found.begin(), found.end());
  return found;
}

using strings = std::vector<std::string>;

std::string code_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const api_error& error) {
    return error.code;
  }
  return "none";
}

}  // namespace

#ifdef CLAUDE_OPENAI_REDIS
TEST_CASE("backends: Redis is among them" * doctest::skip(!has_redis())) {
  std::vector<std::string> kinds;
  for_each_backend(false, [&](backend& here) { kinds.push_back(here.kind()); });
  CHECK(std::count(kinds.begin(), kinds.end(), "Redis") == 1);
}
#endif

TEST_CASE("backends: records are there when the store is opened again, their items in order") {
  for_each_backend(true, [](backend& here) {
    const std::string odd("\0'\n\xC3\xBC:", 6);
    {
      const auto store = here.open();
      CHECK(store->trouble() == "");
      CHECK(store->write("kind", record("a", "1", {1, 2})));
      CHECK(store->write("kind", record("a", "1", {3, 4}), 2));
      CHECK(store->write("kind", record("a", "2", {1, "two", 3})));
      CHECK(store->write("kind", record("a", "2", {5}), 1));
      CHECK(store->write("kind", record("b", odd, {})));
      CHECK(store->write("other", record("a", "1", {7})));
    }
    const auto store = here.open();
    CHECK(records_of(*store, "a") == strings{R"(1 {"of":"1"} [1,2,3,4])", R"(2 {"of":"2"} [1,5])"});
    CHECK(records_of(*store, "b").size() == 1);
    CHECK(store->remove("kind", "b", odd));
    CHECK_FALSE(store->remove("kind", "b", odd));
    CHECK(records_of(*store, "b").empty());
  });
}

TEST_CASE("backends: usage is added up by the hour, and forgotten after 90 days") {
  for_each_backend(true, [](backend& here) {
    const auto store = here.open();
    const auto now = now_ms() / ms_per_hour;
    for (const auto hour : {now - 90 * 24 - 1, now - 90 * 24, now, now}) {
      store->add_usage({hour, "key-1", "m", "d", "cli", 1, {1, 2, 3, 4}, 0.5});
    }
    store->add_usage({now, "key-2", "m", "e", "api_key", 1, {1, 1, 1, 1}, 0.25});
    const auto all = store->sum_usage("model", 0);
    REQUIRE(all.size() == 1);
    CHECK(all[0].answers == 4);
    CHECK(all[0].tokens == std::array<std::int64_t, 4>{4, 7, 10, 13});
    CHECK(all[0].usd == 1.75);
    CHECK(store->sum_usage("model", now).at(0).answers == 3);
    CHECK(store->sum_usage("key", 0).at(1).key == "key-2");
    CHECK(store->sum_usage("dialect", 0).size() == 2);
    const auto paid = store->sum_usage("account", 0);
    REQUIRE(paid.size() == 2);
    CHECK(paid[0].key == "api_key");
    CHECK(paid[1].answers == 3);
    CHECK(store->sum_usage("day", 0).size() == 2);
  });
}

TEST_CASE(
    "backends: a session goes on where it was, is its client's alone, and ends when deleted") {
  for_each_backend(false, [](backend& here) {
    session_store store(here.settings, here.open());
    { const session_lock failed(store, "k", "failed"); }
    CHECK(take_turn(store, "k", "chat") == 0);
    CHECK(take_turn(store, "k", "chat") == 2);
    CHECK(take_turn(store, "another", "chat") == 0);
    CHECK(take_turn(store, "k", "second") == 0);
    const auto all = store.list("k");
    REQUIRE(all.size() == 2);
    CHECK(all[0].id == "chat");
    CHECK(all[0].messages == 4);
    CHECK(all[0].expires - all[0].last_accessed == here.settings.session_ttl);
    CHECK(store.get("k", "chat").value().messages == 4);
    CHECK_FALSE(store.get("k", "failed"));
    CHECK(store.remove("k", "chat"));
    CHECK_FALSE(store.remove("k", "chat"));
    CHECK(take_turn(store, "k", "chat") == 0);
    store.forget({"k"});
    CHECK(store.list("k").empty());
    CHECK(store.list("another").size() == 1);
  });
}

TEST_CASE("backends: many requests for one session are served one after the other") {
  for_each_backend(false, [](backend& here) {
    session_store store(here.settings, here.open());
    std::vector<std::thread> all;
    for (int i = 0; i < 8; ++i) all.emplace_back([&] { take_turn(store, "k", "chat"); });
    for (auto& one : all) one.join();
    CHECK(store.get("k", "chat").value().messages == 16);
  });
}

TEST_CASE("backends: what nobody uses expires") {
  for_each_backend(false, [](backend& here) {
    here.settings.session_ttl = std::chrono::milliseconds(200);
    session_store store(here.settings, here.open());
    take_turn(store, "k", "chat");
    for (int tries = 0; !store.list("k").empty() && tries < 1'000; ++tries) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    CHECK(store.list("k").empty());
    CHECK_FALSE(store.get("k", "chat"));
    CHECK(take_turn(store, "k", "chat") == 0);
  });
}

TEST_CASE(
    "backends: a chain of responses and items by their id are found, until they are deleted") {
  for_each_backend(false, [](backend& here) {
    response_store responses(here.settings, here.open());
    const auto ask = [&](const std::string& id, const std::string& body, const std::string& item) {
      const auto output = json::object({{"id", item}, {"type", "message"}, {"text", id}});
      responses.begin("me", json::parse(body), json::object({{"id", id}}))
          ->keep(json::object({{"id", id}, {"output", json::array({output})}}));
    };
    ask("r1", R"({"input":"a"})", "m1");
    ask("r2", R"({"input":"b","previous_response_id":"r1"})", "m2");
    const auto whole = responses.expand(
        "me", json::parse(R"({"input":[{"id":"m1"}],"previous_response_id":"r2"})"));
    REQUIRE(whole["input"].size() == 5);
    CHECK(whole["input"][1]["text"] == "r1");
    CHECK(whole["input"][4]["text"] == "r1");
    CHECK(responses.input_items("me", "r1")->at(0)["content"][0]["text"] == "a");
    CHECK_FALSE(responses.get("another", "r1"));
    CHECK(
        responses.expand("another", json::parse(R"({"input":[{"id":"m1"}]})"))["input"][0].size() ==
        1);
    CHECK(responses.remove("me", "r1"));
    CHECK_FALSE(responses.remove("me", "r1"));
    CHECK(code_of([&] {
            responses.expand("me", json::parse(R"({"input":"x","previous_response_id":"r2"})"));
          }) == "previous_response_not_found");
  });
}

TEST_CASE("backends: a limit and a budget let through what they say, and no more") {
  for_each_backend(false, [](backend& here) {
    const auto store = here.open();
    limiter limits(store);
    here.settings.limits.chat = 20;
    int passed = 0;
    std::chrono::milliseconds reset{};
    for (int i = 0; i < 60; ++i) {
      const auto now = limits.count(endpoint_group::chat, "10.0.0.1", here.settings.limits);
      if (now.allowed) ++passed;
      reset = now.reset;
    }
    CHECK(reset.count() > 0);
    CHECK(passed % 20 == 0);  // twice that, where a minute ended
    here.settings.day_budget = {3, 1'000, 0};
    const auto refused = [&](const budget& wanted) {
      return code_of([&] { limits.reserve("a", wanted, here.settings); });
    };
    const auto id = limits.reserve("a", {1, 600, 0.5}, here.settings);
    CHECK(refused({1, 600, 0}) == "budget_exceeded");  // the first may use it up
    token_usage used;
    used.input = 100;
    limits.charge("a", {1, 600, 0.5}, used, id);
    const auto second = limits.reserve("a", {1, 600, 0}, here.settings);
    limits.charge("a", {1, 600, 0}, used, second);
    limits.charge("a", {1, 1, 0}, used, limits.reserve("a", {1, 1, 0}, here.settings));
    CHECK(refused({1, 1, 0}) == "budget_exceeded");
    CHECK(code_of([&] { limits.reserve("b", {1, 1, 0}, here.settings); }) == "none");
  });
}

#ifdef CLAUDE_OPENAI_REDIS
TEST_CASE("Redis: two proxies share a session, its lease is given in the order of the questions" *
          doctest::skip(!has_redis())) {
  const backend here("Redis");
  const auto a = here.open();
  const auto b = here.open();
  CHECK(a->try_lease("session", "k", "chat", "one"));
  CHECK(a->try_lease("session", "k", "chat", "one"));
  CHECK_FALSE(b->try_lease("session", "k", "chat", "two"));
  CHECK_FALSE(a->try_lease("session", "k", "chat", "three"));
  CHECK(b->try_lease("session", "k", "another", "four"));
  a->release("session", "k", "chat", "one");
  CHECK_FALSE(a->try_lease("session", "k", "chat", "three"));
  b->release("session", "k", "chat", "two");  // its client has left
  CHECK(a->try_lease("session", "k", "chat", "three"));
}

TEST_CASE("Redis: a turn is added, not the history written anew, and only by who has the lease" *
          doctest::skip(!has_redis())) {
  const backend here("Redis");
  session_store a(here.settings, here.open());
  session_store b(here.settings, here.open());
  CHECK(take_turn(a, "k", "chat") == 0);
  CHECK(take_turn(b, "k", "chat") == 2);
  const std::string key = "claude-openai:v1:record:session:k:chat";
  here.redis->run(
      {"LSET", key, "2", R"({"role":"user","content":[{"type":"text","text":"kept"}]})"});
  CHECK(take_turn(b, "k", "chat") == 4);
  CHECK(text_of(here.redis->run({"LINDEX", key, "2"}).get()).find("kept") != std::string::npos);
  session_lock lost(a, "k", "chat");
  REQUIRE(lost.try_enter());
  here.redis->run({"SET", "claude-openai:v1:lease:session:k:chat", "another"});
  CHECK(code_of([&] { lost.commit("", turn_of("q", "a")); }) == "session_lost");
  CHECK(here.redis->run({"LLEN", key})->integer == 8);
}

TEST_CASE("Redis: a client keeps its latest thousand records of a kind" *
          doctest::skip(!has_redis())) {
  const backend here("Redis");
  const auto store = here.open();
  for (int i = 0; i < 1'001; ++i) store->write("kind", record("a", std::to_string(i), {i}));
  store->write("kind", record("b", "0", {}));
  CHECK(store->list("kind", "a").size() == 1'000);
  CHECK_FALSE(store->fetch("kind", "a", "0"));
  CHECK(store->fetch("kind", "a", "1"));
  CHECK(store->fetch("kind", "b", "0"));
}

TEST_CASE("Redis: what a proxy reserved that died is free again after the longest answer" *
          doctest::skip(!has_redis())) {
  const backend here("Redis");
  auto settings = here.settings;
  settings.timeout = std::chrono::milliseconds(300) - std::chrono::minutes(1);
  settings.day_budget = {0, 1'000, 0};
  limiter limits(here.open());
  limits.reserve("a", {1, 600, 0}, settings);
  const auto refused = [&] { return code_of([&] { limits.reserve("a", {1, 600, 0}, settings); }); };
  std::string code = refused();
  for (int tries = 0; code != "none" && tries < 1'000; ++tries) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    code = refused();
  }
  CHECK(code == "none");
}

TEST_CASE("Redis: every proxy names clients by the same salt" * doctest::skip(!has_redis())) {
  const backend here("Redis");
  const session_store a(here.settings, here.open());
  const session_store b(here.settings, here.open());
  CHECK(a.salt() == b.salt());
  CHECK(a.salt().size() == 43);
}

TEST_CASE("Redis: addresses are taken apart, and wrong ones are refused without their password") {
  const auto tcp = parse_redis_address("redis://me:p%40ss%2f@[::1]:7000/3");
  CHECK(tcp.host == "::1");
  CHECK(tcp.port == "7000");
  CHECK(tcp.user == "me");
  CHECK(tcp.password == "p@ss/");
  CHECK(tcp.name() == "redis://::1:7000/3");
  CHECK(parse_redis_address("redis://host").name() == "redis://host:6379/0");
  CHECK_FALSE(tcp.tls);
#ifdef CLAUDE_OPENAI_REDIS_TLS
  const auto tls = parse_redis_address("rediss://:pw@[::1]/3");
  CHECK(tls.tls);
  CHECK(tls.name() == "rediss://::1:6379/3");
#else
  CHECK_THROWS_AS(parse_redis_address("rediss://:pw@host"), std::invalid_argument);
#endif
  const auto socket = parse_redis_address("unix://:pw@/run/redis.sock?db=2");
  CHECK(socket.password == "pw");
  CHECK(socket.name() == "unix:///run/redis.sock?db=2");
  for (const auto* wrong :
       {"redis://", "redis://:secret@", "redis://:secret@h:x", "redis://secret@h",
        "redis://:secret@h/db", "unix://secret", "unix://:secret@/p?db=", "rediss://:secret@h:x"}) {
    CAPTURE(wrong);
    try {
      parse_redis_address(wrong);
      FAIL_CHECK("taken");
    } catch (const std::invalid_argument& refused) {
      CHECK(std::string(refused.what()).find("secret") == std::string::npos);
    }
  }
}
#endif
