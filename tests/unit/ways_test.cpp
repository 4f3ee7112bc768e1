// [19] pool: by which way a process serves a request, and what that costs. That it is served so is
// tested in tests/protocol.
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support.hpp"

using namespace claude_openai;

namespace {

/// Words are messages, by turns the user's and the assistant's.
conversation_trace trace_of(const std::string& messages) {
  conversation_trace trace;
  std::istringstream words(messages);
  auto author = role::user;
  for (std::string word; words >> word;) {
    append_message(trace, message{author, {text_part{word}}}, {});
    author = author == role::user ? role::assistant : role::user;
  }
  return trace;
}

/// A process that holds a conversation, and a request for one that ends with its question.
struct given {
  std::string held;
  std::vector<std::size_t> marks;  ///< places of the messages that can be taken back
  std::string asked;
  bool parked = false;
  bool brings_results = false;
  rewind_reach may = rewind_reach::anywhere;
};

std::optional<way> way_of(const given& one) {
  conversation_cursor cursor;
  cursor.held = trace_of(one.held);
  for (const auto place : one.marks) cursor.marks.push_back({place, {}});
  const auto asked = trace_of(one.asked);
  return find_way(cursor, one.parked, {{}, {}, &asked, one.brings_results}, one.may);
}

/// `on` or `back`, then messages kept, taken back, told and lost; `none`.
std::string told_of(const given& one) {
  const auto found = way_of(one);
  if (!found) return "none";
  const auto asked = trace_of(one.asked);  // its last message is what is asked, no history
  const auto common = std::min(count_common(trace_of(one.held), asked), asked.ends.size() - 1);
  CHECK(found->abandons_calls == (one.parked && common == 0));  // its own client gives up the calls
  std::ostringstream words;
  words << (found->origin == process_origin::continued ? "on" : "back") << ' ' << found->keep << ' '
        << found->rewound << ' ' << found->replayed << ' ' << found->discarded;
  return words.str();
}

way spare_for(std::size_t told) { return {process_origin::spare, 0, 0, told, 0, false}; }
way start_for(std::size_t told) { return {process_origin::started, 0, 0, told, 0, false}; }

/// A conversation of so many questions with their answers, and its marks.
given with_pairs(std::size_t pairs, const std::string& asked) {
  given one{"", {}, asked};
  for (std::size_t i = 0; i < pairs; ++i) {
    one.held += "q" + std::to_string(i) + " r" + std::to_string(i) + " ";
    one.marks.push_back(2 * i);
  }
  return one;
}

}  // namespace

TEST_CASE("ways: a process goes on where it holds what the request begins with") {
  CHECK(told_of({"q1 r1", {0}, "q1 r1 q2"}) == "on 2 0 0 0");
  CHECK(told_of({"q1 r1", {0}, "q1 r1 q2 r2 q3"}) == "on 2 0 2 0");
  CHECK(told_of({"", {}, "q1"}) == "back 0 0 0 0");  // all was taken back: that is no going on
  CHECK(told_of({"", {}, "q1 r1 q2"}) == "back 0 0 2 0");
}

TEST_CASE("ways: what a client regenerates, edits or branches off is taken back to where it was") {
  const std::string held = "q1 r1 q2 r2 q3 r3";
  const std::vector<std::size_t> marks{0, 2, 4};
  struct row {
    const char *what, *asked, *expected;
  };
  for (const auto& each : {
           row{"regenerated", "q1 r1 q2 r2 q3", "back 4 1 0 2"},
           row{"last message edited", "q1 r1 q2 r2 x3", "back 4 1 0 2"},
           row{"branched", "q1 r1 x2", "back 2 2 0 4"},
           row{"back to a question before", "q1 r1 q2", "back 2 2 0 4"},
           row{"earlier message edited", "q1 r1 x2 r2 q3", "back 2 2 2 4"},
           row{"earlier reply edited", "q1 x1 q2 r2 q3", "back 0 3 4 5"},
           row{"last reply edited", "q1 r1 q2 r2 q3 x3 q4", "back 4 1 2 1"},
           row{"first message edited", "x1 r1 q2", "back 0 3 2 6"},
           row{"another conversation", "x1", "back 0 3 0 6"},
           row{"another with a past", "x1 y1 x2 y2 x3", "back 0 3 4 6"},
           row{"its first question again", "q1", "back 0 3 0 6"},
       }) {
    CAPTURE(each.what);
    CHECK(told_of({held, marks, each.asked}) == each.expected);
  }
}

TEST_CASE("ways: a process that awaits results gets these and nothing else") {
  const given parked{"q1 call", {0}, "q1 call results", true, true};
  CHECK(told_of(parked) == "on 2 0 0 0");
  struct row {
    const char *what, *asked;
    bool brings_results;
    const char* expected;
  };
  for (const auto& each : {
           row{"a question instead", "q1 call q2", false, "back 0 1 2 0"},
           row{"results of later calls", "q1 call results call results", true, "back 0 1 4 0"},
           row{"another's results", "q1 other results", true, "back 0 1 2 1"},
           row{"the question again", "q1", false, "back 0 1 0 2"},
           row{"another conversation", "x1", false, "back 0 1 0 2"},
       }) {
    CAPTURE(each.what);
    auto one = parked;
    one.asked = each.asked;
    one.brings_results = each.brings_results;
    CHECK(told_of(one) == each.expected);
  }
}

TEST_CASE("ways: a message that brings results is taken back with the one before") {
  // Place 2 brings the results of the calls at place 1: no mark stands there.
  const given one{"q1 call results r1 q2 r2", {0, 4}, ""};
  const auto asking = [&](const char* asked) {
    auto other = one;
    other.asked = asked;
    return told_of(other);
  };
  CHECK(asking("q1 call results r1 q2") == "back 4 1 0 2");
  CHECK(asking("q1 call results r1 x2") == "back 4 1 0 2");
  CHECK(asking("q1 call results") == "back 0 2 2 4");
  CHECK(asking("q1 call others") == "back 0 2 2 4");
  CHECK(asking("q1 call results x1 q2") == "back 0 2 4 3");
}

TEST_CASE("ways: where no mark is left there is no way back") {
  CHECK(told_of({"r0", {}, "x1"}) == "none");
  CHECK(told_of({"q0 r0 q1 r1", {2}, "x0"}) == "none");
  CHECK(told_of({"q0 r0 q1 r1", {2}, "q0 r0 x1"}) == "back 2 1 0 2");
}

TEST_CASE("ways: a claude that takes less back is not asked for more") {
  given one{"q1 r1 q2 r2", {0, 2}, ""};
  const auto asking = [&](rewind_reach may, const char* asked) {
    one.may = may;
    one.asked = asked;
    return told_of(one);
  };
  CHECK(asking(rewind_reach::to_an_answer, "q1 r1 q2") == "back 2 1 0 2");
  CHECK(asking(rewind_reach::to_an_answer, "q1 r1 x2") == "back 2 1 0 2");
  CHECK(asking(rewind_reach::to_an_answer, "x1") == "none");
  CHECK(asking(rewind_reach::to_an_answer, "q1") == "none");
  CHECK(asking(rewind_reach::nowhere, "q1 r1 q2") == "none");
  CHECK(asking(rewind_reach::nowhere, "x1") == "none");
  for (const auto may : {rewind_reach::to_an_answer, rewind_reach::nowhere}) {
    CHECK(asking(may, "q1 r1 q2 r2 q3") == "on 4 0 0 0");
  }
}

TEST_CASE("ways: to go on costs least, then to go back a little, a spare, and a start most") {
  const auto on = way_of({"q1 r1", {0}, "q1 r1 q2"});
  const auto regenerated = way_of({"q1 r1", {0}, "q1"});
  const auto another = way_of({"q1 r1", {0}, "x1"});
  REQUIRE(on);
  REQUIRE(regenerated);
  REQUIRE(another);
  CHECK(cost_of(*on) == 0);
  CHECK(cost_of(*on) < cost_of(*regenerated));
  CHECK(cost_of(*regenerated) == cost_of(*another));
  CHECK(cost_of(*another) < cost_of(spare_for(0)));
  CHECK(cost_of(spare_for(0)) < cost_of(start_for(0)));
}

TEST_CASE("ways: a spare is cheaper than a long way back, and even a start than a longer one") {
  const auto cost_back = [](std::size_t pairs, const char* asked) {
    const auto found = way_of(with_pairs(pairs, asked));
    REQUIRE(found);
    REQUIRE(found->origin == process_origin::rewound);
    return cost_of(*found);
  };
  CHECK(cost_back(3, "x1") < cost_of(spare_for(0)));
  CHECK(cost_back(20, "x1") > cost_of(spare_for(0)));
  CHECK(cost_back(20, "x1") < cost_of(start_for(0)));
  CHECK(cost_back(100, "x1") > cost_of(start_for(0)));
}

TEST_CASE("ways: a long history is told by no way for less, but where it is held already") {
  auto edited = with_pairs(100, "");
  edited.asked = edited.held + "x";
  edited.held += "q r";
  edited.marks.push_back(200);
  const auto back = way_of(edited);
  REQUIRE(back);
  CHECK(back->keep == 200);
  CHECK(back->replayed == 0);
  CHECK(cost_of(*back) < cost_of(spare_for(0)));
  CHECK(cost_of(spare_for(200)) - cost_of(spare_for(0)) ==
        doctest::Approx(cost_of(start_for(200)) - cost_of(start_for(0))));
}

TEST_CASE("ways: rather than take a process from the calls that it awaits, another is started") {
  const auto parked = way_of({"q1 call", {0}, "x1", true});
  REQUIRE(parked);
  CHECK(cost_of(*parked) > cost_of(start_for(200)));
}
