// [08] sse: server-sent events.
#include <string>

#include "tests/support.hpp"

using claude_openai::sse_data;

TEST_CASE("sse: an event is one data line and a blank line") {
  CHECK(sse_data("{}") == "data: {}\n\n");
  CHECK(sse_data("[DONE]") == "data: [DONE]\n\n");
  CHECK(sse_data("") == "data: \n\n");
}

TEST_CASE("sse: dumped JSON never breaks a frame, whatever its text holds") {
  CAPTURE(test::seed());
  test::generator random(8);
  for (int i = 0; i < 2'000; ++i) {
    const claude_openai::json value = random.words(10) + random.bytes(6);
    const auto frame = sse_data(claude_openai::dump(value));
    CAPTURE(frame);
    REQUIRE(frame.find('\n') == frame.size() - 2);
    REQUIRE(frame.find('\r') == std::string::npos);
    REQUIRE(frame.substr(frame.size() - 2) == "\n\n");
  }
}

TEST_CASE("sse: the stream reader of these tests notices each breach of the chat rules") {
  const std::string head = R"({"id":"i","object":"chat.completion.chunk","created":1,"model":"m",)";
  const auto choice = [&](const std::string& delta, const std::string& reason) {
    return sse_data(head + R"("choices":[{"index":0,"delta":)" + delta +
                    R"(,"logprobs":null,"finish_reason":)" + reason + "}]}");
  };
  const auto first = choice(R"({"role":"assistant","content":""})", "null");
  const auto words = choice(R"({"content":"x"})", "null");
  const auto last = choice("{}", R"("stop")");
  const auto usage = sse_data(head + R"("choices":[],"usage":{"total_tokens":1}})");
  const auto done = sse_data("[DONE]");
  const auto fine = [](const std::string& stream) {
    return test::read_chat_stream(stream).problem.empty();
  };
  CHECK(fine(first + words + last + done));
  CHECK(fine(first + ": keep-alive\n\n" + last + usage + done));
  CHECK(fine(first + sse_data(R"({"error":{"message":"x"}})") + done));
  CHECK_FALSE(fine(""));
  CHECK_FALSE(fine(first + last));
  CHECK_FALSE(fine(first + done));
  CHECK_FALSE(fine(words + last + done));
  CHECK_FALSE(fine(first + first + last + done));
  CHECK_FALSE(fine(first + last + words + done));
  CHECK_FALSE(fine(first + last + last + done));
  CHECK_FALSE(fine(first + last + done + done));
  CHECK_FALSE(fine(first + last + done + ": late\n\n"));
  CHECK_FALSE(fine(first + usage + last + done));
  CHECK_FALSE(fine(first + last + usage + usage + done));
  CHECK_FALSE(fine(first + choice(R"({"content":"x"})", R"("stop")") + done));
  CHECK_FALSE(fine(first + "event: x\n" + last + done));
  CHECK_FALSE(fine(first + last + done.substr(0, done.size() - 1)));
  auto other = last;
  other.replace(other.find("\"id\":\"i\""), 8, "\"id\":\"j\"");
  CHECK_FALSE(fine(first + other + done));
}
