// What a program that embeds the header may rely on: the calls of `server`, its callbacks, and what
// is said of a wrong one.
#include "proxy_support.hpp"

using namespace protocol_test;
using claude_openai::request_figures;

namespace {

/// The words of what a call throws, as a `Fault`; empty when it throws nothing.
template <class Fault, class Call>
std::string fault_of(Call call) {
  try {
    call();
  } catch (const Fault& fault) {
    return fault.what();
  }
  return {};
}

http_answer ask(const claude_openai::server& proxy, const std::string& wish, bool stream = false) {
  connection client(proxy.port());
  client.post("/v1/chat/completions", chat_asking(wish, stream).dump());
  return client.answer();
}

/// The figures of requests, from whatever threads.
class figures_seen {
 public:
  void add(const request_figures& figures) {
    const std::lock_guard<std::mutex> lock(mutex_);
    all_.push_back(figures);
  }
  std::vector<request_figures> all() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return all_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<request_figures> all_;
};

}  // namespace

TEST_CASE("embedding: `start` serves in a thread of its own, and the end of the server ends it") {
  warm_up_httplib();
  const stand_in program;
  int port = 0;
  {
    claude_openai::server proxy(options_for(program));
    proxy.start();
    port = proxy.port();
    CHECK(proxy.url() == "http://127.0.0.1:" + std::to_string(port));
    CHECK(ask(proxy, "text").status == 200);
  }
  CHECK_FALSE(connection(port).connected());
}

TEST_CASE("embedding: `wait` returns after `stop`, and the port is still told") {
  const stand_in program;
  claude_openai::server proxy(options_for(program));
  proxy.start();
  const int port = proxy.port();
  std::thread stopper([&] { proxy.stop(); });
  proxy.wait();
  stopper.join();
  CHECK(proxy.port() == port);
  proxy.wait();  // once more is no fault
}

TEST_CASE("embedding: `run` binds where nobody has") {
  const stand_in program;
  claude_openai::server proxy(options_for(program));
  std::atomic<bool> inspected{false};
  proxy.on_inspected = [&](const claude_openai::cli_facts&) { inspected = true; };
  std::thread running([&] { proxy.run(); });
  CHECK(eventually([&] { return inspected.load(); }));
  CHECK(ask(proxy, "text").status == 200);
  proxy.stop();
  running.join();
}

TEST_CASE("embedding: a wrong call throws a logic_error with a sentence, and harms nothing") {
  const stand_in program;
  claude_openai::server proxy(options_for(program));
  CHECK(fault_of<std::logic_error>([&] { proxy.port(); }).find("bind") != std::string::npos);
  CHECK(fault_of<std::logic_error>([&] { proxy.url(); }).find("bind") != std::string::npos);
  proxy.bind();
  CHECK(fault_of<std::logic_error>([&] { proxy.bind(); }).find("already") != std::string::npos);
  proxy.start();
  CHECK(fault_of<std::logic_error>([&] { proxy.run(); }).find("once") != std::string::npos);
  CHECK(fault_of<std::logic_error>([&] { proxy.start(); }).find("once") != std::string::npos);
  CHECK(ask(proxy, "text").status == 200);
  auto wrong = options_for(program);
  wrong.permission_mode = "x";
  CHECK(fault_of<std::logic_error>([&] {
          const claude_openai::server none(wrong);
        }).find("permission mode") != std::string::npos);
}

TEST_CASE(
    "embedding: `on_answer` gets each request's figures once, streamed or not, failed or not") {
  const stand_in program;
  claude_openai::server proxy(options_for(program));
  figures_seen seen;
  proxy.on_answer = [&](const request_figures& figures) { seen.add(figures); };
  proxy.start();
  CHECK(ask(proxy, "text").status == 200);
  CHECK(ask(proxy, "text", true).status == 200);
  CHECK(ask(proxy, "crash").status == 502);
  REQUIRE(eventually([&] { return seen.all().size() == 3; }));
  const auto all = seen.all();
  for (const auto& figures : all) {
    CHECK(figures.dialect == "openai_chat");
    CHECK(figures.model == "claude-test");
    CHECK(figures.path == "/v1/chat/completions");
  }
  CHECK(all[0].usage.output > 0);
  CHECK(all[0].first_token.has_value());
  CHECK(std::string(all[1].ending) == "done");
  CHECK(all[2].status == 502);
  CHECK_FALSE(all[2].failure.empty());
}

TEST_CASE("embedding: what callbacks throw is logged, what the log's sink throws is lost") {
  const stand_in program;
  auto settings = options_for(program);
  std::mutex mutex;
  std::string log;
  settings.log = claude_openai::logger(claude_openai::log_level::info,
                                       [&](claude_openai::log_level, const std::string& line) {
                                         const std::lock_guard<std::mutex> lock(mutex);
                                         log += line + "\n";
                                         throw std::runtime_error("the sink is full");
                                       });
  claude_openai::server proxy(settings);
  proxy.on_inspected = [](const claude_openai::cli_facts&) {
    throw std::runtime_error("no facts");
  };
  proxy.on_answer = [](const request_figures&) { throw 7; };
  proxy.start();
  CHECK(ask(proxy, "text").status == 200);
  CHECK(ask(proxy, "text").status == 200);
  const auto told = [&](const char* words) {
    return eventually(
        [&] {
          const std::lock_guard<std::mutex> lock(mutex);
          return log.find(words) != std::string::npos;
        },
        30s);
  };
  CHECK(told("a callback of the embedding program failed: no facts"));
  CHECK(told("a callback of the embedding program failed\n"));
  proxy.stop();
  proxy.wait();
}
