// [16] sessions: histories that the proxy keeps for a client. Waiting and turns are in protocol/.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
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

/// A store of sessions, and the file below it.
struct stored_sessions : session_store {
  explicit stored_sessions(const options& settings)
      : session_store(settings, open_store(settings)) {}
};

/// Why the store will not use that folder; empty when it does.
std::string refusal_of(const options& settings) {
  try {
    const stored_sessions store(settings);
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

/// The ids that a folder's store holds, while no store is open.
strings stored_in(const options& settings) {
  strings ids;
  for (const auto& record : open_store(settings)->read("session")) ids.push_back(record.id);
  return ids;
}

/// A session as versions before the store wrote it.
std::string old_file(const std::string& client, const std::string& id,
                     const std::string& more = R"("last_accessed_ms":1700000000000)") {
  return R"({"version":1,"client":")" + client + R"(","id":")" + id +
         R"(","system":"Be brief.","created_ms":1600000000000,"messages":)"
         R"([{"role":"user","content":[{"type":"text","text":"Hi"}]},)"
         R"({"role":"assistant","content":[{"type":"text","text":"Hello"}]}],)" +
         more + "}";
}

/// A folder as those versions left it. Its sessions never expire here.
options folder_of_old(const scratch_folder& folder) {
  files::create_directories(folder.path);
  files::permissions(folder.path, files::perms::owner_all);
  std::ofstream(folder.path / "salt") << std::string(43, 's');
  std::ofstream(folder.path / (std::string(24, 'a') + ".json")) << old_file("k", "../old");
  std::ofstream(folder.path / (std::string(24, 'b') + ".json.new")) << R"({"version":1,"cl)";
  auto settings = with_folder(folder.path);
  settings.session_ttl = std::chrono::hours(1'000'000);
  return settings;
}

/// Notes what is written, in place of a file; says no while it is full.
struct noted_writes : state_store {
  bool write(const char* /*kind*/, const stored_record& record, std::size_t first,
             const std::optional<write_condition>& /*condition*/) override {
    writes.emplace_back(first, record.items.size());
    return !is_full;
  }
  std::vector<std::pair<std::size_t, std::size_t>> writes;  ///< from which message on, how many
  bool is_full = false;
};

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
  stored_sessions store(settings);
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
  {
    stored_sessions store(settings);
    put(store, "k", "chat", "old");
    session_lock here(store, "k", "chat");
    REQUIRE(here.try_enter());
    CHECK(store.remove("k", "chat"));
    here.commit("", exchange_of("new", "answer"));
    CHECK(ids_of(store, "k").empty());
  }
  CHECK(stored_in(settings).empty());
}

TEST_CASE("sessions: unused for longer than they live, they are gone, of the store too") {
  const scratch_folder folder;
  auto settings = with_folder(folder.path);
  settings.session_ttl = std::chrono::milliseconds(300);
  { put(*std::make_unique<stored_sessions>(settings), "k", "chat", "Hi"); }
  CHECK(stored_in(settings) == strings{"chat"});
  {
    stored_sessions store(settings);
    const session_lock busy(store, "k", "busy");
    std::this_thread::sleep_for(std::chrono::milliseconds(600));
    CHECK(ids_of(store, "k").empty());
    CHECK_FALSE(store.get("k", "chat"));
  }
  CHECK(stored_in(settings).empty());
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
    stored_sessions store(settings);
    session_lock here(store, "client", "../my chat");
    REQUIRE(here.try_enter());
    here.commit("Be \"brief\".", history);
  }
  stored_sessions store(settings);
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
  stored_sessions store(settings);
  {
    const wide_open no_mask;
    for (const std::string id : {"../../escaped", "/etc/passwd", "a", ".."}) {
      put(store, "k", id, "Hi");
    }
  }
  const auto inside = files_in(folder.path / "deep" / "er");
  CHECK(mode_of(folder.path / "deep" / "er") == 0700);
  CHECK(inside.size() == 2);  // what is not in the store yet lies in a file beside it
  for (const auto& file : inside) {
    CAPTURE(file.filename().string());
    CHECK(mode_of(file) == 0600);
    CHECK(file.filename().string().find("claude-openai.sqlite") == 0);
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
  CHECK_NOTHROW(stored_sessions{settings});
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
  const auto settings = folder_of_old(folder);
  const auto foreign = elsewhere.path / "linked.json";
  files::create_directories(elsewhere.path);
  std::ofstream(foreign) << old_file("k", "linked");
  files::create_symlink(foreign, folder.path / "link.json");
  REQUIRE(::mkfifo((folder.path / "pipe.json").c_str(), 0600) == 0);
  files::create_directory(folder.path / "folder.json");
  if (::geteuid() == 0) {
    std::ofstream(folder.path / "another.json") << old_file("k", "another");
    REQUIRE(::chown((folder.path / "another.json").c_str(), 12345, 12345) == 0);
  }
  stored_sessions store(settings);
  CHECK(ids_of(store, "k") == strings{"../old"});
  CHECK(files::exists(foreign));
}

TEST_CASE("sessions: a folder of the store's own making is not refused, whatever the umask") {
  const scratch_folder folder;
  const wide_open no_mask;
  const auto settings = with_folder(folder.path);
  CHECK_NOTHROW(stored_sessions{settings});
  CHECK(mode_of(folder.path) == 0700);
}

TEST_CASE("sessions: a file that is damaged or foreign is skipped and not touched") {
  const scratch_folder folder;
  const auto settings = with_folder(folder.path);
  { put(*std::make_unique<stored_sessions>(settings), "first", "chat", "Hi"); }
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
  stored_sessions store(settings);
  CHECK(ids_of(store, "k").empty());
  for (const auto& [name, bytes] : foreign) CHECK(files::exists(folder.path / name));
  put(store, "k", "mine", "Hi");
  CHECK(ids_of(store, "k") == strings{"mine"});
}

TEST_CASE("sessions: the salt of client names is stored with them, else each run has its own") {
  const scratch_folder folder;
  const auto settings = with_folder(folder.path);
  const auto salt = stored_sessions(settings).salt();
  CHECK(salt.size() >= 32);
  CHECK(stored_sessions(settings).salt() == salt);
  CHECK(mode_of(folder.path / "salt") == 0600);
  const scratch_folder other;
  CHECK(stored_sessions(with_folder(other.path)).salt() != salt);
  const options in_memory;
  CHECK(session_store(in_memory).salt() != session_store(in_memory).salt());
}

TEST_CASE("sessions: a salt that is cut short, or a link to somebody else's, is refused") {
  const scratch_folder folder;
  const scratch_folder other;
  const auto settings = with_folder(folder.path);
  const stored_sessions store(settings);
  const auto others = with_folder(other.path);
  stored_sessions(others).salt();
  files::create_symlink(other.path / "salt", folder.path / "salt");
  CHECK_THROWS_AS(store.salt(), std::runtime_error);
  files::remove(folder.path / "salt");
  std::ofstream(folder.path / "salt") << "short";
  CHECK_THROWS_AS(store.salt(), std::runtime_error);
  files::remove(folder.path / "salt");
  CHECK(store.salt() == store.salt());
}

TEST_CASE("sessions: a time in the future is taken for now") {
  const scratch_folder folder;
  const auto settings = with_folder(folder.path);
  { put(*std::make_unique<stored_sessions>(settings), "k", "mine", "Hi"); }
  {
    const auto file = open_store(settings);
    auto records = file->read("session");
    REQUIRE(records.size() == 1);
    for (const char* time : {"created_ms", "last_accessed_ms"}) {
      REQUIRE(records[0].head.contains(time));
      records[0].head[time] = std::numeric_limits<std::int64_t>::max();
    }
    REQUIRE(file->write("session", records[0]));
  }
  stored_sessions store(settings);
  const auto kept = store.list("k");
  REQUIRE(kept.size() == 1);
  CHECK(kept[0].id == "mine");
  CHECK(kept[0].created <= std::chrono::system_clock::now());
  CHECK(kept[0].last_accessed <= std::chrono::system_clock::now());
}

TEST_CASE(
    "sessions: files of older versions become part of the store, once, and their salt stays") {
  const scratch_folder folder;
  const auto settings = folder_of_old(folder);
  {
    stored_sessions store(settings);
    CHECK(store.salt() == std::string(43, 's'));
    REQUIRE(ids_of(store, "k") == strings{"../old"});
    session_lock here(store, "k", "../old");
    CHECK(here.system() == "Be brief.");
    CHECK(store.get("k", "../old")->created.time_since_epoch() ==
          std::chrono::hours(444'444) + std::chrono::minutes(26) + std::chrono::seconds(40));
    REQUIRE(here.try_enter());
    auto history = here.history();
    CHECK(history == exchange_of("Hi", "Hello"));
    history.push_back(says(role::user, "And?"));
    history.push_back(says(role::assistant, "Well."));
    here.commit("Be brief.", history);
  }
  strings names;
  for (const auto& file : files_in(folder.path)) names.push_back(file.filename().string());
  std::sort(names.begin(), names.end());
  CHECK(names == strings{"claude-openai.sqlite", "salt"});
  // A file that could not be removed then is older than what is stored.
  std::ofstream(folder.path / (std::string(24, 'a') + ".json")) << old_file("k", "../old");
  stored_sessions store(settings);
  session_lock here(store, "k", "../old");
  CHECK(here.history().size() == 4);
  CHECK_FALSE(files::exists(folder.path / (std::string(24, 'a') + ".json")));
}

TEST_CASE("sessions: a turn is added to the store, and what was stored is not written again") {
  const options settings;
  const auto file = std::make_shared<noted_writes>();
  session_store store(settings, file);
  session_lock here(store, "k", "chat");
  REQUIRE(here.try_enter());
  std::vector<message> history;
  const auto go_on = [&](const std::string& asked) {
    for (auto& more : exchange_of(asked, "answer")) history.push_back(std::move(more));
    here.commit("", history);
    return file->writes.back();
  };
  using written = std::pair<std::size_t, std::size_t>;
  CHECK(go_on("one") == written{0, 2});
  CHECK(go_on("two") == written{2, 2});
  SUBCASE("a history that the client has changed is written from there on") {
    history[2] = says(role::user, "another two");
    CHECK(go_on("three") == written{2, 4});
    CHECK(go_on("four") == written{6, 2});
  }
  SUBCASE("a shorter one, too") {
    history.resize(1);
    CHECK(go_on("three") == written{1, 2});
  }
  SUBCASE("what could not be written is written with the next turn") {
    file->is_full = true;
    CHECK(go_on("three") == written{4, 2});
    CHECK(go_on("four") == written{4, 4});
    file->is_full = false;
    CHECK(go_on("five") == written{4, 6});
    CHECK(go_on("six") == written{10, 2});
  }
}

TEST_CASE("sessions: messages are the same when all of their parts are") {
  std::vector<message> all = exchange_of("words", "words");
  all.push_back(says(role::user, "others"));
  all.push_back({role::user, {}});
  media_part picture;
  picture.data = "x";
  media_part other = picture;
  other.title = "name";
  for (const content_part& part : std::vector<content_part>{
           thinking_part{"words", "", ""}, thinking_part{"words", "s", ""}, picture, other,
           tool_call_part{"c", "f", json::parse(R"({"a":1})")},
           tool_call_part{"c", "f", json::parse(R"({"a":2})")},
           tool_result_part{"c", {text_part{"words"}}, false},
           tool_result_part{"c", {text_part{"words"}}, true}, tool_result_part{"c", {picture}}}) {
    all.push_back({role::user, {part}});
  }
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t j = 0; j < all.size(); ++j) CHECK((all[i] == all[j]) == (i == j));
  }
}

TEST_CASE("sessions: a stored message reads back as it was written") {
  message said = says(role::assistant, "words");
  said.parts.emplace_back(tool_call_part{"c", "f", json::parse(R"({"a":1})")});
  said.parts.emplace_back(text_part{"more"});
  media_part cited;
  cited.kind = media_part::media_kind::document;
  cited.data = "x";
  cited.more = json::parse(R"({"citations":{"enabled":true}})");
  said.parts.emplace_back(cited);
  for (
      const std::string sealed :
      {R"({"type":"server_tool_use","id":"s","name":"web_search","input":{"query":"q"}})",
       R"({"type":"web_search_tool_result","tool_use_id":"s","content":[{"encrypted_content":"e"}]})",
       R"({"type":"text","text":"found","citations":[{"encrypted_index":"i"}]})"}) {
    said.parts.emplace_back(api_block_part{json::parse(sealed)});
  }
  json content = json::array();
  for (const auto& part : said.parts) content.push_back(render_part(part));
  const auto back =
      decode_message(json::object({{"role", "assistant"}, {"content", content}})).value();
  conversation_trace before;
  conversation_trace after;
  append_message(before, said, {});
  append_message(after, back, {});
  CHECK(before.words == after.words);
  CHECK(back == said);
  for (const std::string odd : {"null", "1", "[]", "{}", R"({"role":"user","content":"x"})"}) {
    CAPTURE(odd);
    CHECK_FALSE(decode_message(json::parse(odd)));
  }
}
