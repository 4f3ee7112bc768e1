// [21] responses: answers that clients of the Responses API may refer to.
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/dialects.hpp"

using namespace claude_openai;
using namespace std::chrono_literals;
using test::error_of;
using tree = test::json;  // compares without regard to the order of members

namespace {

claude_openai::json parsed(const std::string& text) { return claude_openai::json::parse(text); }
claude_openai::json begun(const std::string& id) {
  return parsed(R"({"id":")" + id + R"(","status":"in_progress"})");
}
tree plain(const claude_openai::json& value) { return tree::parse(value.dump()); }

/// A store of its own, in short words. Who asks is `me` where nobody else is named.
struct fixture {
  explicit fixture(std::chrono::milliseconds ttl = 1h) { settings.session_ttl = ttl; }

  /// Keeps a response whose output are these items.
  void answer(const std::string& id, const std::string& body, const std::string& output = "[]",
              const std::string& client = "me") {
    const auto running = store.begin(client, parsed(body), begun(id));
    running->keep(parsed(R"({"id":")" + id + R"(","status":"completed","output":)" + output + "}"));
  }

  /// `user:a said:b call(c1) …`: the input after what it refers to has been put in.
  std::string expanded(const std::string& body, const std::string& client = "me") {
    const auto whole = store.expand(client, parsed(body));
    std::string words;
    for (const auto& item : whole.at("input")) {
      words += words.empty() ? "" : " ";
      words += item.contains("text") ? item["text"].get<std::string>() : plain(item).dump();
    }
    return words;
  }

  bool knows(const std::string& id, const std::string& client = "me") {
    return store.get(client, id).has_value();
  }

  options settings;
  response_store store{settings};
};

/// An item that reads as its text.
std::string item(const std::string& text, const std::string& id = "") {
  return R"({"type":"message","text":")" + text + "\"" +
         (id.empty() ? "" : R"(,"id":")" + id + "\"") + "}";
}

std::string input(const std::string& items, const std::string& previous = "") {
  return R"({"input":[)" + items + "]" +
         (previous.empty() ? "" : R"(,"previous_response_id":")" + previous + "\"") + "}";
}

std::string reference(const std::string& id) {
  return R"({"type":"item_reference","id":")" + id + R"("})";
}

}  // namespace

// ---- what requests refer to --------------------------------------------------------------------

TEST_CASE("response store: a request that refers to nothing keeps its input, a text as an item") {
  fixture kept;
  CHECK(kept.expanded(input(item("a") + "," + item("b"))) == "a b");
  const auto whole = kept.store.expand("me", parsed(R"({"model":"m","input":"Hi"})"));
  CHECK(plain(whole) == tree{{"model", "m"}, {"input", {{{"role", "user"}, {"content", "Hi"}}}}});
}

TEST_CASE("response store: input and output of all earlier responses come first, oldest first") {
  fixture kept;
  kept.answer("r1", input(item("a") + "," + item("b")), "[" + item("A") + "]");
  kept.answer("r2", input(item("c"), "r1"), "[" + item("B") + "," + item("C") + "]");
  kept.answer("r3", R"({"input":"d","previous_response_id":"r2"})", "[" + item("D") + "]");
  CHECK(kept.expanded(input(item("x"), "r1")) == "a b A x");
  CHECK(kept.expanded(input(item("x"), "r2")) == "a b A c B C x");
  CHECK(kept.expanded(input(item("x"), "r2")) == "a b A c B C x");  // as often as one likes
  const auto whole = kept.store.expand("me", parsed(input(item("x"), "r3")));
  REQUIRE(whole["input"].size() == 9);
  CHECK(whole["input"][6]["role"] == "user");
  CHECK(whole["input"][6]["content"][0]["text"] == "d");
}

TEST_CASE("response store: the other fields of a request are its own, not its predecessor's") {
  fixture kept;
  kept.answer("r1", R"({"input":"a","instructions":"old","model":"m"})");
  const auto whole = kept.store.expand(
      "me", parsed(R"({"input":"b","instructions":"new","previous_response_id":"r1"})"));
  CHECK(whole["instructions"] == "new");
  CHECK_FALSE(whole.contains("model"));
  CHECK(whole["previous_response_id"] == "r1");
}

TEST_CASE("response store: a predecessor that is not kept is a 404 that tells which") {
  fixture kept;
  kept.answer("r1", input(item("a")), "[]", "another");
  for (const std::string id : {"r1", "nothing"}) {
    CAPTURE(id);
    const auto error = error_of([&] { kept.expanded(input(item("x"), id)); });
    CHECK(error.kind == error_kind::not_found);
    CHECK(error.code == "previous_response_not_found");
    CHECK(error.param == "previous_response_id");
    CHECK(error.message.find("'" + id + "'") != std::string::npos);
  }
  const auto error = error_of([&] { kept.expanded(R"({"input":"x","previous_response_id":7})"); });
  CHECK(error.kind == error_kind::invalid_request);
  CHECK(error.param == "previous_response_id");
  CHECK(kept.expanded(R"({"input":[],"previous_response_id":null})").empty());
}

TEST_CASE("response store: an input that is none is left for the parser to refuse") {
  fixture kept;
  kept.answer("r1", input(item("a")));
  for (const std::string body : {R"({"previous_response_id":"r1"})", R"({"input":7})", "{}"}) {
    CAPTURE(body);
    CHECK(plain(kept.store.expand("me", parsed(body))) == tree::parse(body));
  }
}

TEST_CASE("response store: items are named by their id, alone or as a reference") {
  fixture kept;
  kept.answer("r1", input(item("a", "in_1") + "," + item("b", "in_2")),
              "[" + item("A", "out_1") + "," + item("B", "out_2") + "]");
  CHECK(kept.expanded(input(reference("out_2") + "," + item("x") + "," + reference("in_1"))) ==
        "B x a");
  CHECK(kept.expanded(input(R"({"id":"in_2"},{"id":"out_1"})")) == "b A");
  const auto unknown = tree::parse(reference("out_9")).dump();
  CHECK(kept.expanded(input(reference("out_9"))) == unknown);
  CHECK(kept.expanded(input(R"({"id":"out_9"})")) == R"({"id":"out_9"})");
  CHECK(kept.expanded(input(item("own", "out_1"))) == "own");  // whole: it names nothing
}

TEST_CASE("response store: a conversation that is named item by item has no end") {
  fixture kept;
  std::string items;
  std::string references;
  for (int i = 0; i < 3000; ++i) {
    const auto comma = i == 0 ? "" : ",";
    items += comma + item(std::to_string(i), "in_" + std::to_string(i));
    references += comma + reference("in_" + std::to_string(i));
  }
  kept.answer("r1", input(items));
  const auto whole = kept.expanded(input(references));
  CHECK(whole.substr(0, 6) == "0 1 2 ");
  CHECK(whole.substr(whole.size() - 10) == " 2998 2999");
}

TEST_CASE("response store: one client's items are nobody else's") {
  fixture kept;
  kept.answer("r1", input(item("a", "in_1")), "[" + item("A", "out_1") + "]", "another");
  for (const std::string id : {"in_1", "out_1"}) {
    CHECK(kept.expanded(input(reference(id))) == tree::parse(reference(id)).dump());
    CHECK(kept.expanded(input(reference(id)), "another") == (id == "in_1" ? "a" : "A"));
  }
}

TEST_CASE("response store: what a request named by its id is there for its successors") {
  fixture kept;
  kept.answer("r1", input(item("a")), "[" + item("A", "out_1") + "]");
  kept.answer("r2", input(reference("out_1") + "," + item("b")), "[" + item("B") + "]");
  CHECK(kept.expanded(input(item("x"), "r2")) == "A b B x");
}

TEST_CASE("response store: an id names the item, not another request's naming of it") {
  // As agents do that keep the history by references: each step names all items before it.
  for (const bool later_first : {false, true}) {
    CAPTURE(later_first);
    fixture kept;
    const std::string first = later_first ? "r9" : "r1";
    kept.answer(first, input(item("a")), "[" + item("A", "out_1") + "]");
    kept.answer("r5", input(reference("out_1") + "," + item("b")), "[" + item("B", "out_2") + "]");
    CHECK(kept.expanded(input(reference("out_1") + "," + reference("out_2"))) == "A B");
  }
}

// ---- what is kept ------------------------------------------------------------------------------

TEST_CASE("response store: a response is what was kept, its input what was sent, with ids") {
  fixture kept;
  kept.answer("r1", input(item("a")), "[" + item("A") + "]");
  kept.answer("r2", R"({"previous_response_id":"r1","input":[{"role":"user","content":"b"},)" +
                        item("c", "own") + "]}");
  CHECK(kept.store.get("me", "r1")->at("output")[0]["text"] == "A");
  const auto items = kept.store.input_items("me", "r2");
  REQUIRE(items);
  REQUIRE(items->size() == 2);
  CHECK(items->at(0)["content"][0]["text"] == "b");
  CHECK_FALSE(items->at(0).value("id", "").empty());
  CHECK(items->at(1)["id"] == "own");
  kept.answer("r3", R"({"input":"words"})");
  const auto words = kept.store.input_items("me", "r3");
  REQUIRE(words->size() == 1);
  CHECK(words->at(0)["content"][0]["text"] == "words");
  CHECK(words->at(0)["role"] == "user");
  CHECK(words->at(0)["type"] == "message");
}

TEST_CASE("response store: kept items have a type, an id, and content in parts") {
  fixture kept;
  kept.answer("r1", R"({"input":[{"role":"user","content":"a"},
      {"role":"assistant","content":"b"},
      {"role":"user","content":[{"type":"input_text","text":"c"}]},
      {"type":"function_call","call_id":"x","name":"n","arguments":"{}"}]})");
  auto items = plain(*kept.store.input_items("me", "r1"));
  REQUIRE(items.size() == 4);
  for (auto& one : items) {
    CHECK(one.value("id", "").size() > 10);
    one.erase("id");
  }
  const auto message = [](const char* role, const char* type, const char* text) {
    return tree{{"type", "message"},
                {"role", role},
                {"content", tree::array({{{"type", type}, {"text", text}}})}};
  };
  CHECK(items[0] == message("user", "input_text", "a"));
  CHECK(items[1] == message("assistant", "output_text", "b"));
  CHECK(items[2] == message("user", "input_text", "c"));
  CHECK(items[3]["type"] == "function_call");
}

TEST_CASE("response store: one client's responses are nobody else's") {
  fixture kept;
  kept.answer("r1", input(item("a")));
  CHECK_FALSE(kept.knows("r1", "another"));
  CHECK_FALSE(kept.store.input_items("another", "r1"));
  CHECK_FALSE(kept.store.cancel("another", "r1"));
  CHECK_FALSE(kept.store.remove("another", "r1"));
  CHECK(kept.knows("r1"));
  kept.answer("r1", input(item("b")), "[" + item("B") + "]", "another");  // ids may be the same
  CHECK(kept.store.input_items("me", "r1")->at(0)["text"] == "a");
  CHECK(kept.store.input_items("another", "r1")->at(0)["text"] == "b");
}

TEST_CASE("response store: what was deleted is gone, for those that follow it as well") {
  fixture kept;
  kept.answer("r1", input(item("a", "in_1")));
  kept.answer("r2", input(item("b"), "r1"));
  CHECK(kept.store.remove("me", "r1"));
  CHECK_FALSE(kept.store.remove("me", "r1"));
  CHECK_FALSE(kept.knows("r1"));
  CHECK_FALSE(kept.store.input_items("me", "r1"));
  CHECK(kept.knows("r2"));
  CHECK(error_of([&] { kept.expanded(input(item("x"), "r2")); }).kind == error_kind::not_found);
  CHECK(kept.expanded(input(reference("in_1"))) == tree::parse(reference("in_1")).dump());
}

TEST_CASE("response store: one that is under way says so, and is what it was kept as at its end") {
  fixture kept;
  const auto running = kept.store.begin("me", parsed(input(item("a"))), begun("r1"));
  CHECK(kept.store.get("me", "r1")->at("status") == "in_progress");
  CHECK(kept.store.get("me", "r1")->at("id") == "r1");
  CHECK(kept.store.input_items("me", "r1")->size() == 1);
  running->keep(parsed(R"({"id":"r1","status":"completed"})"));
  CHECK(kept.store.get("me", "r1")->at("status") == "completed");
}

TEST_CASE("response store: one that nobody has read to its end is cancelled if its id was told") {
  fixture kept;
  for (const bool streamed : {true, false}) {
    const std::string id = streamed ? "streamed" : "whole";
    const auto body = R"({"input":"a","stream":)" + std::string(streamed ? "true}" : "false}");
    auto running = kept.store.begin("me", parsed(body), begun(id));
    CHECK(kept.knows(id));
    running.reset();
    CHECK(kept.knows(id) == streamed);
  }
  CHECK(kept.store.get("me", "streamed")->at("status") == "cancelled");
  CHECK(kept.store.cancel("me", "streamed")->at("status") == "cancelled");
  CHECK(kept.store.input_items("me", "streamed")->size() == 1);
}

TEST_CASE("response store: one that was kept stays, one that was refused does not") {
  fixture kept;
  for (const std::string id : {"kept", "refused"}) {
    auto running = kept.store.begin("me", parsed(R"({"input":"a","stream":true})"), begun(id));
    if (id == "kept") running->keep(parsed(R"({"id":"kept","status":"failed"})"));
    if (id == "refused") running->forget();
  }
  CHECK(kept.store.get("me", "kept")->at("status") == "failed");
  CHECK_FALSE(kept.knows("refused"));
}

TEST_CASE("response store: one that is deleted while it is under way stays so") {
  fixture kept;
  auto running = kept.store.begin("me", parsed(input(item("a"))), begun("r1"));
  CHECK(kept.store.remove("me", "r1"));
  running->keep(parsed(R"({"id":"r1"})"));
  CHECK_FALSE(kept.knows("r1"));
  running.reset();
  CHECK_FALSE(kept.knows("r1"));
}

// ---- cancelling --------------------------------------------------------------------------------

TEST_CASE("response store: cancelling raises the signal of the one that is under way, no other") {
  fixture kept;
  const auto running = kept.store.begin("me", parsed(input(item("a"))), begun("r1"));
  const auto other = kept.store.begin("me", parsed(input(item("a"))), begun("r2"));
  CHECK_FALSE(running->cancelled()->is_raised());
  const auto told = kept.store.cancel("me", "r1");
  REQUIRE(told);
  CHECK(told->at("status") == "cancelled");
  CHECK(told->at("id") == "r1");
  CHECK(running->cancelled()->is_raised());
  CHECK_FALSE(other->cancelled()->is_raised());
  CHECK(kept.store.get("me", "r1")->at("status") == "cancelled");
  CHECK(kept.store.get("me", "r2")->at("status") == "in_progress");
  CHECK(kept.store.cancel("me", "r1")->at("status") == "cancelled");
}

TEST_CASE("response store: one that has ended stays as it is when it is cancelled") {
  fixture kept;
  auto running = kept.store.begin("me", parsed(input(item("a"))), begun("r1"));
  running->keep(parsed(R"({"id":"r1","status":"completed"})"));
  CHECK(kept.store.cancel("me", "r1")->at("status") == "completed");
  CHECK_FALSE(running->cancelled()->is_raised());
  running.reset();
  CHECK(kept.store.cancel("me", "r1")->at("status") == "completed");
  CHECK_FALSE(kept.store.cancel("me", "nothing"));
}

// ---- limits ------------------------------------------------------------------------------------

TEST_CASE("response store: responses expire with the time, but not while they are under way") {
  fixture kept;
  kept.answer("r1", input(item("a", "in_1")));
  const auto running = kept.store.begin("me", parsed(input(item("b"))), begun("r2"));
  CHECK(kept.knows("r1"));
  kept.settings.session_ttl = 10ms;
  std::this_thread::sleep_for(20ms);
  CHECK_FALSE(kept.knows("r1"));
  CHECK_FALSE(kept.store.input_items("me", "r1"));
  CHECK_FALSE(kept.store.remove("me", "r1"));
  CHECK_FALSE(kept.store.cancel("me", "r1"));
  CHECK(kept.knows("r2"));
  CHECK(error_of([&] { kept.expanded(input(item("x"), "r1")); }).kind == error_kind::not_found);
  CHECK(kept.expanded(input(reference("in_1"))) == tree::parse(reference("in_1")).dump());
}

TEST_CASE("response store: a conversation that goes on does not expire") {
  fixture kept(1500ms);
  kept.answer("r0", input(item("0")));
  for (int i = 1; i <= 5; ++i) {
    std::this_thread::sleep_for(400ms);
    const auto body = input(item(std::to_string(i)), "r" + std::to_string(i - 1));
    REQUIRE_NOTHROW(kept.expanded(body));
    kept.answer("r" + std::to_string(i), body);
  }
  CHECK(kept.expanded(input(item("x"), "r5")) == "0 1 2 3 4 5 x");
}

TEST_CASE("response store: the latest thousand are kept, of all clients together") {
  fixture kept;
  for (int i = 0; i < 1002; ++i) {
    kept.answer("r" + std::to_string(i), R"({"input":"a"})", "[]", i % 2 == 0 ? "me" : "another");
  }
  CHECK_FALSE(kept.knows("r0"));
  CHECK_FALSE(kept.knows("r1", "another"));
  CHECK(kept.knows("r2"));
  CHECK(kept.knows("r1001", "another"));
}

TEST_CASE("response store: large responses push out older ones, whether input or output is large") {
  const std::string large(30 * 1024 * 1024, 'x');
  for (const bool is_output : {false, true}) {
    CAPTURE(is_output);
    fixture kept;
    for (const std::string id : {"r1", "r2", "r3"}) {
      kept.answer(id, is_output ? input(item("a")) : input(item(large)),
                  is_output ? "[" + item(large) + "]" : "[]");
    }
    CHECK_FALSE(kept.knows("r1"));
    CHECK(kept.knows("r2"));
    CHECK(kept.knows("r3"));
  }
}

TEST_CASE("response store: whoever keeps most gives up his own, not another client's") {
  fixture kept;
  kept.answer("mine", input(item("a")));
  const std::string large(9 * 1024 * 1024, 'x');
  for (int i = 0; i < 8; ++i) {
    kept.answer("big" + std::to_string(i), input(item(large)), "[]", "another");
  }
  CHECK(kept.knows("mine"));
  CHECK_FALSE(kept.knows("big0", "another"));
  CHECK(kept.knows("big7", "another"));
  for (int i = 0; i < 1100; ++i) {
    kept.answer("r" + std::to_string(i), R"({"input":"a"})", "[]", "third");
  }
  CHECK(kept.knows("mine"));
  CHECK_FALSE(kept.knows("r0", "third"));
  CHECK(kept.knows("r1099", "third"));
}

TEST_CASE("response store: what has expired pushes nothing out") {
  fixture kept(3s);
  const std::string large(40 * 1024 * 1024, 'x');
  kept.answer("old", input(item(large)));
  std::this_thread::sleep_for(3100ms);
  kept.answer("new", input(item(large)));
  CHECK(kept.knows("new"));
  CHECK_FALSE(kept.knows("old"));
}

TEST_CASE("response store: many small values count as the memory that they take") {
  std::string zeros = "0";
  for (int i = 0; i < 250'000; ++i) zeros += ",0";
  fixture kept;
  for (const std::string id : {"r1", "r2", "r3"}) {
    kept.answer(id, input(R"({"type":"x","values":[)" + zeros + "]}"));
  }
  CHECK_FALSE(kept.knows("r1"));
  CHECK(kept.knows("r3"));
}

// ---- lists of items ----------------------------------------------------------------------------

TEST_CASE("response store: the list of items tells its first and last, in either order") {
  const auto items = parsed("[" + item("a", "1") + "," + item("b", "2") + "]");
  const auto oldest = plain(render_items(items, false, "", ""));
  CHECK(oldest == tree{{"object", "list"},
                       {"data", plain(items)},
                       {"first_id", "1"},
                       {"last_id", "2"},
                       {"has_more", false}});
  const auto newest = plain(render_items(items, true, "", ""));
  CHECK(newest["first_id"] == "2");
  CHECK(newest["last_id"] == "1");
  CHECK(newest["data"][0]["text"] == "b");
  const auto none = plain(render_items(parsed("[]"), true, "", ""));
  CHECK(none["first_id"].is_null());
  CHECK(none["last_id"].is_null());
  CHECK(none["data"] == tree::array());
}

TEST_CASE("response store: a list comes in pages of at most a hundred, twenty when none is said") {
  claude_openai::json items = claude_openai::json::array();
  for (int i = 0; i < 45; ++i) items.push_back(parsed(item("t", std::to_string(i))));
  const auto page = [&](bool newest, const std::string& limit, const std::string& after) {
    const auto told = plain(render_items(items, newest, limit, after));
    std::string ids = std::to_string(told["data"].size()) + ":";
    for (const char* end : {"first_id", "last_id"}) ids += told[end].dump();
    return ids + (told["has_more"] == true ? "+" : "");
  };
  CHECK(page(false, "", "") == R"(20:"0""19"+)");
  CHECK(page(false, "", "19") == R"(20:"20""39"+)");
  CHECK(page(false, "", "39") == R"(5:"40""44")");
  CHECK(page(false, "45", "") == R"(45:"0""44")");
  CHECK(page(true, "2", "") == R"(2:"44""43"+)");
  CHECK(page(true, "2", "1") == R"(1:"0""0")");
  CHECK(page(false, "1", "44") == "0:nullnull");
  for (const std::string limit : {"0", "101", "x", "-1"}) {
    CAPTURE(limit);
    CHECK(error_of([&] { page(false, limit, ""); }).param == "limit");
  }
  CHECK(error_of([&] { page(false, "", "nothing"); }).param == "after");
}
