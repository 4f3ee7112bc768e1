// [21] store: what outlasts the process, and where it lies.
#ifdef CLAUDE_OPENAI_SQLITE
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;
namespace files = std::filesystem;

namespace {

/// A private folder that lives as long as the test, and a file's path in it.
struct fixture {
  fixture() : folder(files::temp_directory_path() / text::random_id("store-", 16)) {
    files::create_directories(folder);
    files::permissions(folder, files::perms::owner_all);
    settings.store = (folder / "state").string();
    settings.log =
        logger(log_level::debug, [this](log_level, const std::string& line) { log += line; });
  }
  fixture(const fixture&) = delete;
  fixture& operator=(const fixture&) = delete;
  ~fixture() { files::remove_all(folder); }

  std::shared_ptr<state_store> open() const { return open_store(settings); }

  /// Why the start is refused; empty when it is not.
  std::string refusal() const {
    try {
      open();
    } catch (const std::exception& refused) {
      return refused.what();
    }
    return {};
  }

  /// What another program does to the file.
  void change(const char* statements) const {
    sqlite3* database = nullptr;
    REQUIRE(::sqlite3_open(settings.store.c_str(), &database) == SQLITE_OK);
    CHECK(::sqlite3_exec(database, statements, nullptr, nullptr, nullptr) == SQLITE_OK);
    ::sqlite3_close(database);
  }

  files::path folder;
  options settings;
  std::string log;
};

unsigned mode_of(const files::path& path) {
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_mode & 0777U;
}

stored_record record(const std::string& client, const std::string& id, std::vector<json> items) {
  return {client, id, json::object({{"of", id}}), std::move(items)};
}

/// `a/1 {"of":"1"} [1,2]` for each record.
std::vector<std::string> all_of(state_store& store, const char* kind = "kind") {
  std::vector<std::string> found;
  for (const auto& one : store.read(kind)) {
    found.push_back(one.client + "/" + one.id + " " + one.head.dump() + " " +
                    json(one.items).dump());
  }
  return found;
}

using strings = std::vector<std::string>;

}  // namespace

TEST_CASE("store: what was written is there when it is opened again, each kind by itself") {
  const fixture here;
  {
    const auto store = here.open();
    CHECK(store->problem().empty());
    CHECK(store->write("kind", record("b", "1", {1, "two"}), 0));
    CHECK(store->write("kind", record("a", "1", {}), 0));
    CHECK(store->write("kind", record("a", std::string("\0'\n\xC3\xBC", 5), {1}), 0));
    CHECK(store->write("other", record("a", "1", {7}), 0));
  }
  const auto store = here.open();
  const std::string odd("\0'\n\xC3\xBC", 5);
  CHECK(all_of(*store).size() == 3);
  CHECK(store->read("kind").front().id == odd);
  CHECK(all_of(*store).back() == R"(b/1 {"of":"1"} [1,"two"])");
  CHECK(all_of(*store, "other") == strings{R"(a/1 {"of":"1"} [7])"});
  store->remove("kind", "a", odd);
  store->remove("kind", "b", "1");
  CHECK(all_of(*store) == strings{R"(a/1 {"of":"1"} [])"});
}

TEST_CASE("store: items are added behind those that are there, or put in their place") {
  const fixture here;
  const auto store = here.open();
  store->write("kind", record("a", "1", {1, 2}), 0);
  store->write("kind", record("a", "1", {3, 4}), 2);
  CHECK(all_of(*store) == strings{R"(a/1 {"of":"1"} [1,2,3,4])"});
  store->write("kind", record("a", "1", {5}), 1);
  CHECK(all_of(*store) == strings{R"(a/1 {"of":"1"} [1,5])"});
}

TEST_CASE("store: its files are their owner's alone, whatever the umask") {
  const fixture here;
  const auto before = ::umask(0);
  {
    const auto store = here.open();
    store->write("kind", record("a", "1", {}), 0);
    ::umask(before);
    for (const auto& file : files::directory_iterator(here.folder)) {
      CAPTURE(file.path().string());
      CHECK(mode_of(file.path()) == 0600);
    }
  }
  CHECK(mode_of(here.settings.store) == 0600);
}

TEST_CASE("store: a place that other users can get at is refused, and stays as it is") {
  const fixture here;
  SUBCASE("a file that others may read") {
    std::ofstream(here.settings.store) << "";
    REQUIRE(::chmod(here.settings.store.c_str(), 0644) == 0);
    CHECK(here.refusal().find("--store: " + here.settings.store + " is open to other users") == 0);
    CHECK(mode_of(here.settings.store) == 0644);
  }
  SUBCASE("a directory that others may write to") {
    REQUIRE(::chmod(here.folder.c_str(), 01777) == 0);
    CHECK(here.refusal().find("--store: other users may write to ") == 0);
    CHECK_FALSE(files::exists(here.settings.store));
  }
  SUBCASE("a link") {
    std::ofstream(here.folder / "elsewhere") << "";
    files::create_symlink(here.folder / "elsewhere", here.settings.store);
    CHECK(here.refusal().find("--store: " + here.settings.store + " cannot be used") == 0);
  }
  SUBCASE("a directory in its place") {
    files::create_directory(here.settings.store);
    CHECK(here.refusal().find("--store: " + here.settings.store) == 0);
  }
}

TEST_CASE(
    "store: one that cannot be used is told, changed by nothing, and costs only what needs it") {
  fixture here;
  std::shared_ptr<state_store> other;
  std::string why;
  SUBCASE("another process has it") {
    other = here.open();
    why = "another process uses it";
  }
  SUBCASE("no database") {
    std::ofstream(here.settings.store) << std::string(10'000, 'x');
    why = "file is not a database";
  }
  SUBCASE("damaged within") {
    {
      const auto whole = here.open();
      for (int i = 0; i < 200; ++i) {
        whole->write("kind", record("a", std::to_string(i), {std::string(200, 'x')}), 0);
      }
    }
    std::fstream file(here.settings.store, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096 * 3);
    file << std::string(4096, 'x');
    why = "damaged";
  }
  SUBCASE("of a newer version") {
    here.open();
    here.change("PRAGMA user_version = 1000");
    why = "a newer version of the proxy wrote it";
  }
  SUBCASE("of another program") {
    here.change("CREATE TABLE theirs (x)");
    why = "it belongs to another program";
  }
  if (!files::exists(here.settings.store)) return;  // doctest's pass without a subcase
  ::chmod(here.settings.store.c_str(), 0600);
  const auto bytes = files::file_size(here.settings.store);
  const auto store = here.open();
  CHECK_MESSAGE(store->problem().find(why) != std::string::npos, store->problem());
  CHECK(here.log.find(here.settings.store + " cannot be used: ") != std::string::npos);
  CHECK(store->trouble() == store->problem());
  CHECK_FALSE(store->write("kind", record("a", "1", {}), 0));
  CHECK(store->read("kind").empty());
  CHECK_THROWS_AS(store->sum_usage("day", 0), api_error);
  CHECK(files::file_size(here.settings.store) == bytes);
  session_store sessions(here.settings, store);
  const auto code_of = [](const auto& act) {
    try {
      act();
    } catch (const api_error& error) {
      CHECK(http_status(error.kind) == 503);
      return error.code;
    }
    return std::string("none");
  };
  CHECK(code_of([&] { session_store::session_lock(sessions, "k", "chat"); }) ==
        "store_unavailable");
  CHECK(code_of([&] { sessions.list("k"); }) == "store_unavailable");
  response_store responses(here.settings, store);
  const auto refers = json::parse(R"({"input":"Hi","previous_response_id":"resp_1"})");
  CHECK(code_of([&] { responses.expand("k", refers); }) == "store_unavailable");
  CHECK(code_of([&] { responses.get("k", "resp_1"); }) == "store_unavailable");
  CHECK(code_of([&] { responses.expand("k", json::parse(R"({"input":"Hi"})")); }) == "none");
}

TEST_CASE("store: a file of the first version gets what later ones have, and keeps what it holds") {
  const fixture here;
  std::ofstream(here.settings.store) << "";
  REQUIRE(::chmod(here.settings.store.c_str(), 0600) == 0);
  here.change(
      "CREATE TABLE records (kind TEXT, client TEXT, id TEXT, head TEXT NOT NULL,"
      " PRIMARY KEY (kind, client, id)) WITHOUT ROWID;"
      "CREATE TABLE items (kind TEXT, client TEXT, id TEXT, position INTEGER, body TEXT NOT NULL,"
      " PRIMARY KEY (kind, client, id, position)) WITHOUT ROWID;"
      "PRAGMA user_version = 1;"
      "INSERT INTO records VALUES ('kind', 'a', '1', '{}')");
  const auto store = here.open();
  CHECK(store->problem().empty());
  store->add_usage({now_ms() / ms_per_hour, "key-1", "m", "d", "cli", 1, {1, 2, 3, 4}, 0.5});
  CHECK(store->sum_usage("key", 0).size() == 1);
  CHECK(all_of(*store) == strings{"a/1 {} []"});
}

TEST_CASE("store: usage of the second version is kept, by an account that nobody knows") {
  const fixture here;
  { const auto store = here.open(); }
  here.change(
      "DROP TABLE usage;"
      "CREATE TABLE usage (hour INTEGER, key TEXT, model TEXT, dialect TEXT, answers INTEGER,"
      " input INTEGER, output INTEGER, cache_read INTEGER, cache_write INTEGER, usd REAL,"
      " PRIMARY KEY (hour, key, model, dialect)) WITHOUT ROWID;"
      "INSERT INTO usage VALUES (strftime('%s') / 3600, 'key-1', 'm', 'd', 2, 1, 2, 3, 4, 0.5);"
      "PRAGMA user_version = 2;");
  const auto store = here.open();
  store->add_usage({now_ms() / ms_per_hour, "key-1", "m", "d", "cli", 1, {1, 2, 3, 4}, 0.5});
  const auto paid = store->sum_usage("account", 0);
  REQUIRE(paid.size() == 2);
  CHECK(paid[0].key == "cli");
  CHECK(paid[1].key == "unknown");
  CHECK(paid[1].answers == 2);
  CHECK(paid[1].tokens == std::array<std::int64_t, 4>{1, 2, 3, 4});
}

TEST_CASE("store: usage is added up by the hour, and forgotten after 90 days") {
  const fixture here;
  const auto store = here.open();
  const auto now = now_ms() / ms_per_hour;
  for (const auto hour : {now - 90 * 24 - 1, now - 90 * 24, now, now}) {
    store->add_usage({hour, "key-1", "m", "d", "cli", 1, {1, 2, 3, 4}, 0.5});
  }
  const auto all = store->sum_usage("model", 0);
  REQUIRE(all.size() == 1);
  CHECK(all[0].answers == 3);
  CHECK(all[0].tokens == std::array<std::int64_t, 4>{3, 6, 9, 12});
  CHECK(all[0].usd == 1.5);
  CHECK(store->sum_usage("model", now).at(0).answers == 2);
}

/// The most bytes of a file that this process may write.
void limit_files(rlim_t most) {
  struct rlimit limit {};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &limit) == 0);
  limit.rlim_cur = std::min(most, limit.rlim_max);
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
}

TEST_CASE("store: a write that fails is trouble, until one of that size succeeds") {
  fixture here;
  ::signal(SIGXFSZ, SIG_IGN);
  const auto store = here.open();
  CHECK(state_store().trouble() == std::nullopt);
  CHECK(store->trouble() == "");
  limit_files(files::file_size(here.settings.store + "-wal") + 20'000);
  const auto large = record("a", "1", {std::string(100'000, 'x')});
  CHECK_FALSE(store->write("kind", large));
  CHECK_FALSE(store->trouble().value_or("").empty());
  CHECK(store->problem().empty());
  CHECK(store->write("kind", record("a", "2", {})));
  CHECK_FALSE(store->trouble().value_or("").empty());
  limit_files(RLIM_INFINITY);
  CHECK(store->trouble() == "");
  CHECK(here.log.find(here.settings.store + " can be written to again") != std::string::npos);
  CHECK(store->write("kind", large));
  CHECK(store->read("trial").empty());
}

TEST_CASE("store: a file that was moved or deleted is trouble") {
  const fixture here;
  const auto store = here.open();
  files::rename(here.settings.store, here.folder / "elsewhere");
  CHECK(store->trouble().value_or("").find("moved or deleted") != std::string::npos);
  CHECK(store->problem().empty());
  files::rename(here.folder / "elsewhere", here.settings.store);
  CHECK(store->trouble() == "");
}

TEST_CASE("store: ended responses are there after a restart, with what they refer to") {
  fixture here;
  const auto begun = [](const std::string& id) { return json::object({{"id", id}}); };
  const auto ask = [&](response_store& responses, const std::string& id, const std::string& body) {
    return responses.begin("me", json::parse(body), begun(id));
  };
  const auto done = [&](const std::string& id, const std::string& text) {
    return json::object({{"id", id},
                         {"status", "completed"},
                         {"output", json::array({json::object({{"text", text}})})}});
  };
  {
    response_store responses(here.settings, here.open());
    ask(responses, "r1", R"({"input":"a"})")->keep(done("r1", "A"));
    ask(responses, "r2", R"({"input":"b","previous_response_id":"r1"})")->keep(done("r2", "B"));
    ask(responses, "gone", R"({"input":"c"})")->keep(done("gone", "C"));
    CHECK(responses.remove("me", "gone"));
    const auto streamed = ask(responses, "left", R"({"input":"d","stream":true})");
    const auto unknown = ask(responses, "never told", R"({"input":"e"})");
  }
  response_store responses(here.settings, here.open());
  CHECK(responses.get("me", "r1") == done("r1", "A"));
  CHECK_FALSE(responses.get("me", "gone"));
  CHECK_FALSE(responses.get("me", "never told"));
  CHECK_FALSE(responses.get("another", "r1"));
  CHECK(string_of(responses.get("me", "left").value_or(json()), "status") == "cancelled");
  CHECK(responses.input_items("me", "r1")->at(0)["content"][0]["text"] == "a");
  const auto whole =
      responses.expand("me", json::parse(R"({"input":"x","previous_response_id":"r2"})"));
  REQUIRE(whole["input"].size() == 5);
  CHECK(whole["input"][1]["text"] == "A");
  CHECK(whole["input"][4]["content"] == "x");
}

TEST_CASE("store: responses expire over a restart, the one before another together with it") {
  fixture here;
  const auto at = [&](const char* id, const char* previous, int minutes_ago) {
    const auto used = now_ms() - minutes_ago * 60'000;
    here.open()->write("response", {"me", id,
                                    json::object({{"response", json::object({{"id", id}})},
                                                  {"previous", previous},
                                                  {"used_ms", used}})});
  };
  at("first", "", 90);
  at("second", "first", 80);
  at("third", "second", 30);
  at("old", "", 90);
  {
    response_store responses(here.settings, here.open());
    CHECK(responses.get("me", "first"));
    CHECK(responses.get("me", "third"));
    CHECK_FALSE(responses.get("me", "old"));
  }
  CHECK(here.open()->read("response").size() == 3);
}

TEST_CASE("store: what a key has used of a day's budget holds over a restart, for that day") {
  fixture here;
  here.settings.day_budget = {0, 1000, 0};
  const auto refused = [&](limiter& limits, const char* client) {
    try {
      limits.reserve(client, {1, 10, 0}, here.settings);
      limits.charge(client, {1, 10, 0}, {});
    } catch (const api_error& error) {
      return error.code;
    }
    return std::string();
  };
  token_usage used;
  used.input = 600;
  used.output = 400;
  for (const char* client : {"a", "b"}) {
    limiter limits(here.open());
    CHECK(refused(limits, client).empty());
    limits.reserve(client, {1, 10, 0}, here.settings);
    limits.charge(client, {1, 10, 0}, used);
    CHECK(refused(limits, client) == "budget_exceeded");
  }
  {
    const auto store = here.open();
    auto records = store->read("budget");
    REQUIRE(records.size() == 2);
    CHECK(records[0].head["requests"] == 2);
    CHECK(records[0].head["tokens"] == 1000);
    records[1].head["day"] = records[1].head["day"].get<int>() - 1;
    store->write("budget", records[1]);
  }
  {
    limiter limits(here.open());
    CHECK(refused(limits, "a") == "budget_exceeded");
    CHECK(refused(limits, "b").empty());
  }
  CHECK(here.open()->read("budget").size() == 2);
}
#endif
