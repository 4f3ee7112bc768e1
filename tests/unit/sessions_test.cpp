// [16] sessions: histories that the proxy keeps for a client. Waiting and turns are in protocol/.
#include <fcntl.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;
namespace files = std::filesystem;
using strings = std::vector<std::string>;
using session_lock = session_store::session_lock;

namespace {

/// A folder that lives as long as the test.
struct scratch_folder {
  scratch_folder() : path(files::temp_directory_path() / text::random_id("sessions-", 16)) {}
  scratch_folder(const scratch_folder&) = delete;
  scratch_folder& operator=(const scratch_folder&) = delete;
  ~scratch_folder() { files::remove_all(path); }
  files::path path;
};

/// Files are made with all the rights that their maker asks for.
struct wide_open {
  wide_open() : before(::umask(0)) {}
  wide_open(const wide_open&) = delete;
  wide_open& operator=(const wide_open&) = delete;
  ~wide_open() { ::umask(before); }
  mode_t before;
};

message says(role author, const std::string& words) { return {author, {text_part{words}}}; }

std::vector<message> exchange_of(const std::string& asked, const std::string& answered) {
  return {says(role::user, asked), says(role::assistant, answered)};
}

void put(session_store& store, const std::string& client, const std::string& id,
         const std::string& words) {
  session_lock here(store, client, id);
  REQUIRE(here.try_enter());
  here.commit("system", exchange_of(words, "answer"));
}

strings ids_of(session_store& store, const std::string& client) {
  strings ids;
  for (const auto& info : store.list(client)) ids.push_back(info.id);
  return ids;
}

std::string first_words(session_store& store, const std::string& client, const std::string& id) {
  const session_lock here(store, client, id);
  return here.history().empty() ? "" : std::get<text_part>(here.history()[0].parts[0]).text;
}

options with_folder(const files::path& path) {
  options settings;
  settings.session_directory = path.string();
  return settings;
}

unsigned mode_of(const files::path& path) {
  struct stat info {};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_mode & 0777U;
}

/// Why the store will not use that folder; empty when it does.
std::string refusal_of(const options& settings) {
  try {
    const session_store store(settings);
  } catch (const std::invalid_argument& refused) {
    return refused.what();
  }
  return {};
}

std::vector<files::path> files_in(const files::path& folder) {
  std::vector<files::path> found;
  for (const auto& file : files::directory_iterator(folder)) found.push_back(file.path());
  return found;
}

}  // namespace

TEST_CASE("sessions: what was committed is there at the next visit") {
  const options settings;
  session_store store(settings);
  {
    session_lock here(store, "k", "chat");
    REQUIRE(here.try_enter());
    CHECK(here.history().empty());
    CHECK(here.system().empty());
    here.commit("Be brief.", exchange_of("Hi", "Hello"));
  }
  session_lock again(store, "k", "chat");
  CHECK(again.system() == "Be brief.");
  REQUIRE(again.history().size() == 2);
  CHECK(again.history()[1].author == role::assistant);
}

TEST_CASE("sessions: a turn that failed leaves no session behind") {
  const options settings;
  session_store store(settings);
  { const session_lock here(store, "k", "chat"); }
  CHECK(ids_of(store, "k").empty());
  CHECK_FALSE(store.get("k", "chat"));
  CHECK_FALSE(store.remove("k", "chat"));
}

TEST_CASE("sessions: one client's sessions are not another's, whatever the ids") {
  const options settings;
  session_store store(settings);
  put(store, "a", "chat", "words of a");
  put(store, "b", "chat", "words of b");
  put(store, "", "chat", "words of nobody");
  CHECK(first_words(store, "a", "chat") == "words of a");
  CHECK(first_words(store, "b", "chat") == "words of b");
  CHECK(first_words(store, "", "chat") == "words of nobody");
  CHECK(first_words(store, "c", "chat").empty());
  CHECK(ids_of(store, "a") == strings{"chat"});
  CHECK(ids_of(store, "c").empty());
  CHECK_FALSE(store.get("c", "chat"));
  CHECK_FALSE(store.remove("c", "chat"));
  CHECK(store.remove("a", "chat"));
  CHECK(first_words(store, "a", "chat").empty());
  CHECK(first_words(store, "b", "chat") == "words of b");
}

TEST_CASE("sessions: they are listed oldest first, with what is told of each") {
  const options settings;
  session_store store(settings);
  for (const std::string id : {"b", "a", "c"}) {
    put(store, "k", id, "Hi");
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  CHECK(ids_of(store, "k") == strings{"b", "a", "c"});
  const auto info = store.get("k", "a").value();
  CHECK(info.id == "a");
  CHECK(info.messages == 2);
  CHECK(info.created <= info.last_accessed);
  CHECK(info.expires == info.last_accessed + settings.session_ttl);
}

TEST_CASE("sessions: a session is one request's at a time, and others get it in order") {
  const options settings;
  session_store store(settings);
  auto first = std::make_unique<session_lock>(store, "k", "chat");
  session_lock second(store, "k", "chat");
  session_lock third(store, "k", "chat");
  session_lock other(store, "k", "another chat");
  CHECK(first->try_enter());
  CHECK(other.try_enter());
  CHECK_FALSE(second.try_enter());
  CHECK_FALSE(third.try_enter());
  first->commit("", exchange_of("Hi", "Hello"));
  first.reset();
  CHECK_FALSE(third.try_enter());
  CHECK(second.try_enter());
  CHECK(second.history().size() == 2);
  CHECK_FALSE(third.try_enter());
}

TEST_CASE("sessions: whoever gives up waiting is passed over") {
  const options settings;
  session_store store(settings);
  auto first = std::make_unique<session_lock>(store, "k", "chat");
  auto second = std::make_unique<session_lock>(store, "k", "chat");
  session_lock third(store, "k", "chat");
  second.reset();
  CHECK_FALSE(third.try_enter());
  SUBCASE("after the one before it left") {
    first.reset();
    CHECK(third.try_enter());
  }
  SUBCASE("when it was its turn") {
    auto fourth = std::make_unique<session_lock>(store, "k", "chat");
    first.reset();
    CHECK(third.try_enter());
    fourth.reset();
  }
}

TEST_CASE("sessions: a session that is deleted within a turn stays deleted") {
  const scratch_folder folder;
  const auto settings = with_folder(folder.path);
  session_store store(settings);
  put(store, "k", "chat", "old");
  session_lock here(store, "k", "chat");
  REQUIRE(here.try_enter());
  CHECK(store.remove("k", "chat"));
  here.commit("", exchange_of("new", "answer"));
  CHECK(ids_of(store, "k").empty());
  CHECK(files_in(folder.path).empty());
}

TEST_CASE("sessions: unused for longer than they live, they are gone, file and all") {
  const scratch_folder folder;
  auto settings = with_folder(folder.path);
  settings.session_ttl = std::chrono::milliseconds(300);
  session_store store(settings);
  put(store, "k", "chat", "Hi");
  CHECK(files_in(folder.path).size() == 1);
  const session_lock busy(store, "k", "busy");
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  CHECK(ids_of(store, "k").empty());
  CHECK_FALSE(store.get("k", "chat"));
  CHECK(files_in(folder.path).empty());
}

TEST_CASE("sessions: a session in use does not expire") {
  auto settings = options{};
  settings.session_ttl = std::chrono::milliseconds(300);
  session_store store(settings);
  put(store, "k", "chat", "Hi");
  session_lock here(store, "k", "chat");
  REQUIRE(here.try_enter());
  std::this_thread::sleep_for(std::chrono::milliseconds(600));
  CHECK(ids_of(store, "k") == strings{"chat"});
}

TEST_CASE("sessions: whoever keeps most gives up his own, not another client's") {
  const options settings;
  session_store store(settings);
  put(store, "me", "mine", "words");
  for (int i = 0; i < 8; ++i) {
    put(store, "another", std::to_string(i), std::string(9 * 1024 * 1024, 'x'));
  }
  CHECK(ids_of(store, "me") == strings{"mine"});
  CHECK(ids_of(store, "another") == strings{"1", "2", "3", "4", "5", "6", "7"});
}

TEST_CASE("shared store: the client that holds most is the one with the most entries or bytes") {
  shared_store held(10, 1000);
  for (int i = 0; i < 5; ++i) held.add("many", 1);
  held.add("large", 600);
  held.add("small", 1);
  CHECK_FALSE(held.is_full());
  held.add("small", 500);
  CHECK(held.is_full());
  CHECK(held.largest_client() == "large");
  held.remove("large", 600);
  CHECK_FALSE(held.is_full());
  for (int i = 0; i < 5; ++i) held.add("many", 1);
  CHECK(held.is_full());
  CHECK(held.largest_client() == "many");
}

TEST_CASE("sessions: they survive a restart whole, tools and odd bytes included") {
  const scratch_folder folder;
  const auto settings = with_folder(folder.path);
  std::vector<message> history = exchange_of("é\n\"😀", "Let me look.");
  history[1].parts.emplace_back(tool_call_part{"c1", "look", json::parse(R"({"b":1,"a":[]})")});
  history.push_back(
      {role::user, {tool_result_part{"c1", {text_part{"sunny"}}}, text_part{"/clear"}}});
  history.push_back(says(role::assistant, "Sunny."));
  turn_request request;
  request.messages = history;
  const auto words = make_trace(request).words;
  {
    session_store store(settings);
    session_lock here(store, "client", "../my chat");
    REQUIRE(here.try_enter());
    here.commit("Be \"brief\".", history);
  }
  session_store store(settings);
  CHECK(ids_of(store, "client") == strings{"../my chat"});
  CHECK(ids_of(store, "other").empty());
  session_lock here(store, "client", "../my chat");
  CHECK(here.system() == "Be \"brief\".");
  request.messages = here.history();
  CHECK(make_trace(request).words == words);
}

TEST_CASE("sessions: their folder and files are their owner's alone, whatever their ids") {
  const scratch_folder folder;
  const auto settings = with_folder(folder.path / "deep" / "er");
  session_store store(settings);
  {
    const wide_open no_mask;
    for (const std::string id : {"../../escaped", "/etc/passwd", "a", ".."}) {
      put(store, "k", id, "Hi");
    }
  }
  const auto inside = files_in(folder.path / "deep" / "er");
  CHECK(mode_of(folder.path / "deep" / "er") == 0700);
  CHECK(inside.size() == 4);
  for (const auto& file : inside) {
    CAPTURE(file.filename().string());
    CHECK(mode_of(file) == 0600);
    CHECK(file.extension() == ".json");
  }
  CHECK(files_in(folder.path).size() == 1);
  CHECK(files_in(folder.path / "deep").size() == 1);
}

TEST_CASE("sessions: a folder that others may enter is refused, and stays as it is") {
  const scratch_folder folder;
  files::create_directories(folder.path);
  const auto settings = with_folder(folder.path);
  for (const mode_t mode : {0777, 01777, 0770, 0750, 0705, 0701}) {
    CAPTURE(mode);
    REQUIRE(::chmod(folder.path.c_str(), mode) == 0);
    const auto said = refusal_of(settings);
    CHECK_MESSAGE(said.find(folder.path.string() + " is open to other users") != said.npos, said);
    CHECK(said.find("chmod 700") != said.npos);
    CHECK(mode_of(folder.path) == (mode & 0777U));
  }
  REQUIRE(::chmod(folder.path.c_str(), 0700) == 0);
  CHECK_NOTHROW(session_store{settings});
}

TEST_CASE("sessions: a folder in use for other things is refused, and stays as it is") {
  const scratch_folder folder;
  files::create_directories(folder.path);
  files::permissions(folder.path, files::perms::owner_all);
  std::ofstream(folder.path / "notes.json") << "{}";
  const auto settings = with_folder(folder.path);
  const auto said = refusal_of(settings);
  CHECK_MESSAGE(said.find("holds other files and no session") != said.npos, said);
  CHECK(files_in(folder.path).size() == 1);
  const auto file = with_folder(folder.path / "notes.json");
  CHECK(refusal_of(file).find("File exists") == std::string::npos);
  CHECK(refusal_of(file).find("is not a directory") != std::string::npos);
}

TEST_CASE("sessions: another user's folder is refused") {
  if (::geteuid() == 0) {
    const scratch_folder folder;
    files::create_directories(folder.path);
    files::permissions(folder.path, files::perms::owner_all);
    REQUIRE(::chown(folder.path.c_str(), 12345, 12345) == 0);
    CHECK(refusal_of(with_folder(folder.path)).find("belongs to another user") !=
          std::string::npos);
  } else {
    CHECK(refusal_of(with_folder("/")).find("belongs to another user") != std::string::npos);
  }
}

TEST_CASE(
    "sessions: links, pipes and other users' files are no stored sessions, and hold nobody up") {
  const scratch_folder folder;
  const scratch_folder elsewhere;
  {
    const auto settings = with_folder(elsewhere.path);
    session_store store(settings);
    put(store, "k", "linked", "Hi");
  }
  const auto settings = with_folder(folder.path);
  { put(*std::make_unique<session_store>(settings), "k", "mine", "Hi"); }
  files::create_symlink(files_in(elsewhere.path)[0], folder.path / "link.json");
  REQUIRE(::mkfifo((folder.path / "pipe.json").c_str(), 0600) == 0);
  files::create_directory(folder.path / "folder.json");
  if (::geteuid() == 0) {
    files::copy_file(files_in(elsewhere.path)[0], folder.path / "another.json");
    REQUIRE(::chown((folder.path / "another.json").c_str(), 12345, 12345) == 0);
  }
  session_store store(settings);
  CHECK(ids_of(store, "k") == strings{"mine"});
}

TEST_CASE("sessions: a folder of the store's own making is not refused, whatever the umask") {
  const scratch_folder folder;
  const wide_open no_mask;
  const auto settings = with_folder(folder.path);
  CHECK_NOTHROW(session_store{settings});
  CHECK(mode_of(folder.path) == 0700);
}

TEST_CASE("sessions: a file that is damaged or foreign is skipped and not touched") {
  const scratch_folder folder;
  const auto settings = with_folder(folder.path);
  { put(*std::make_unique<session_store>(settings), "first", "chat", "Hi"); }
  const std::vector<std::pair<std::string, std::string>> foreign = {
      {"empty.json", ""},
      {"cut.json", R"({"version":1,"client":"k","id":"cut","messages":[{"role":"us)"},
      {"list.json", "[1,2]"},
      {"odd.json", R"({"id":"odd","client":"k","messages":7,"created_ms":"x"})"},
      {"nameless.json", R"({"client":"k","messages":[{"role":"user","content":[]}]})"},
      {"bytes.json", "\xFF\xFE{"},
      {"export.json",
       R"({"id":"chat","messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}]})"},
      {"old.json", R"({"version":1,"client":"k","id":"old","messages":[{"role":"user","content":)"
                   R"([{"type":"text","text":"Hi"}]}]})"},
      {"deep.json", R"({"version":1,"client":"k","id":"deep","last_accessed_ms":1,"messages":)"
                    R"([{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"n",)"
                    R"("input":{"a":)" +
                        std::string(1'000'000, '[') + std::string(1'000'000, ']') + "}}]}]}"},
      {"note.txt", "not mine"},
      {"note.new", "not mine"},
      {"note.json.new", "not mine"}};
  for (const auto& [name, bytes] : foreign) {
    std::ofstream(folder.path / name, std::ios::binary) << bytes;
  }
  session_store store(settings);
  CHECK(ids_of(store, "k").empty());
  CHECK(files_in(folder.path).size() == foreign.size() + 1);
  put(store, "k", "mine", "Hi");
  CHECK(ids_of(store, "k") == strings{"mine"});
}

TEST_CASE("sessions: the salt of client names is stored with them, else each run has its own") {
  const scratch_folder folder;
  const auto settings = with_folder(folder.path);
  const auto salt = session_store(settings).salt();
  CHECK(salt.size() >= 32);
  CHECK(session_store(settings).salt() == salt);
  CHECK(mode_of(folder.path / "salt") == 0600);
  const scratch_folder other;
  CHECK(session_store(with_folder(other.path)).salt() != salt);
  const options in_memory;
  CHECK(session_store(in_memory).salt() != session_store(in_memory).salt());
}

TEST_CASE("sessions: a salt that is cut short, or a link to somebody else's, is refused") {
  const scratch_folder folder;
  const scratch_folder other;
  const auto settings = with_folder(folder.path);
  const session_store store(settings);
  const auto others = with_folder(other.path);
  session_store(others).salt();
  files::create_symlink(other.path / "salt", folder.path / "salt");
  CHECK_THROWS_AS(store.salt(), std::runtime_error);
  files::remove(folder.path / "salt");
  std::ofstream(folder.path / "salt") << "short";
  CHECK_THROWS_AS(store.salt(), std::runtime_error);
  files::remove(folder.path / "salt");
  CHECK(store.salt() == store.salt());
}

TEST_CASE("sessions: a file from the future is taken for one of now") {
  const scratch_folder folder;
  const auto settings = with_folder(folder.path);
  { put(*std::make_unique<session_store>(settings), "k", "mine", "Hi"); }
  for (const auto& file : files::directory_iterator(folder.path)) {
    auto stored = json::parse(std::ifstream(file.path()));
    for (const char* time : {"created_ms", "last_accessed_ms"}) {
      REQUIRE(stored.contains(time));
      stored[time] = std::numeric_limits<std::int64_t>::max();
    }
    std::ofstream(file.path()) << stored;
  }
  session_store store(settings);
  const auto kept = store.list("k");
  REQUIRE(kept.size() == 1);
  CHECK(kept[0].id == "mine");
  CHECK(kept[0].created <= std::chrono::system_clock::now());
  CHECK(kept[0].last_accessed <= std::chrono::system_clock::now());
}

TEST_CASE("sessions: a stored message reads back as it was written") {
  message said = says(role::assistant, "words");
  said.parts.emplace_back(tool_call_part{"c", "f", json::parse(R"({"a":1})")});
  said.parts.emplace_back(text_part{"more"});
  json content = json::array();
  for (const auto& part : said.parts) content.push_back(render_part(part));
  const auto back =
      decode_message(json::object({{"role", "assistant"}, {"content", content}})).value();
  conversation_trace before;
  conversation_trace after;
  append_message(before, said, {});
  append_message(after, back, {});
  CHECK(before.words == after.words);
  CHECK(render_part(back.parts.at(2)) == content.at(2));
  for (const std::string odd : {"null", "1", "[]", "{}", R"({"role":"user","content":"x"})"}) {
    CAPTURE(odd);
    CHECK_FALSE(decode_message(json::parse(odd)));
  }
}
