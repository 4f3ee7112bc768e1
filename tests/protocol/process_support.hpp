// One `claude_process` with a stand-in behind it, moved by hand: what a request's turn does with it.
#pragma once

#include "proxy_support.hpp"

namespace protocol_test {

using state = claude_openai::claude_process::state;

/// A conversation of these texts, the user's first; the last one asks.
inline claude_openai::turn_request chat(const std::vector<std::string>& texts) {
  auto request = asking("text");
  request.messages.clear();
  for (const auto& text : texts) {
    const bool asks = request.messages.size() % 2 == 0;
    request.messages.push_back(asks ? user_says(text) : assistant_says(text));
  }
  return request;
}

/// Owns a stand-in's process, and request and trace of the turn that it serves.
class driven_process {
 public:
  explicit driven_process(const std::string& configuration = "")
      : program_(configuration),
        process_(claude_openai::make_command(options_for(program_), {"claude-test"}), guard_,
                 &limits_) {}

  claude_openai::claude_process* operator->() { return &process_; }
  const stand_in& program() const { return program_; }
  const claude_openai::limit_board& limits() const { return limits_; }

  /// Begins a turn, with the first `keep` of the messages that the process holds.
  void begin(claude_openai::turn_request request, std::size_t keep = 0) {
    request_ = std::move(request);
    trace_ = make_trace(request_);
    said_ = {};
    process_.begin(request_, trace_, keep);
  }

  /// The turn's end, when it comes in time.
  outcome finish(milliseconds within = 20s) {
    outcome got;
    pump_until(
        [&] {
          while (const auto what = process_.pop()) {
            got.add(*what);
            if (!std::holds_alternative<claude_openai::turn_failed>(*what)) said_.add(*what);
          }
          return got.ended();
        },
        within);
    return got;
  }

  outcome ask(claude_openai::turn_request request, std::size_t keep = 0) {
    begin(std::move(request), keep);
    return finish();
  }

  /// Ends the turn well.
  void accept() { process_.accept(reply()); }

  /// What the client will send back of the answer.
  claude_openai::message reply() const { return make_reply(said_.result()); }

  /// A turn that goes well.
  std::string answer(claude_openai::turn_request request, std::size_t keep = 0) {
    const auto got = ask(std::move(request), keep);
    REQUIRE_MESSAGE(got.stopped, (got.error ? got.error->message : "no end"));
    accept();
    return got.text;
  }

  /// The request with its answer and another message of the user's.
  claude_openai::turn_request next(const std::string& text) const {
    auto request = request_;
    request.messages.push_back(reply());
    request.messages.push_back(user_says(text));
    return request;
  }

  /// Lets the process read until that holds.
  template <class Condition>
  bool pump_until(Condition holds, milliseconds within = 30s) {
    const auto deadline = steady::now() + within;
    while (!holds()) {
      if (steady::now() > deadline) return false;
      std::vector<pollfd> entries;
      process_.add_poll_entries(entries);
      ::poll(entries.data(), static_cast<nfds_t>(entries.size()), 20);
      process_.pump();
    }
    return true;
  }

  bool reaches(state wanted, milliseconds within = 30s) {
    return pump_until([&] { return process_.now() == wanted; }, within);
  }

  std::size_t messages_held() const { return process_.cursor().held.ends.size(); }

  /// The places of the messages that can be taken back.
  std::vector<std::size_t> marks() const {
    std::vector<std::size_t> places;
    for (const auto& mark : process_.cursor().marks) places.push_back(mark.message);
    return places;
  }

 private:
  stand_in program_;
  claude_openai::child_guard guard_;
  claude_openai::logger log_;
  claude_openai::limit_board limits_{log_};
  claude_openai::turn_request request_;
  claude_openai::conversation_trace trace_;
  claude_openai::collector said_;
  claude_openai::claude_process process_;
};

}  // namespace protocol_test
