// [28] http_head: where a request ends, and what is refused because two programs could disagree.
#include <string>
#include <utility>
#include <vector>

#include "tests/support.hpp"

using claude_openai::api_error;
using claude_openai::chunk_decoder;
using claude_openai::request_head;

namespace {

request_head parse(const std::string& bytes) { return claude_openai::http_head::parse(bytes); }

request_head with(const std::string& fields) {
  return parse("POST /v1/messages HTTP/1.1\r\nHost: h\r\n" + fields);
}

/// Empty when it is taken.
std::string refusal(const std::string& bytes) {
  try {
    parse(bytes);
    return {};
  } catch (const api_error& error) {
    CHECK(http_status(error.kind) == 400);
    return error.message;
  }
}

bool refuses(const std::string& fields) {
  return !refusal("POST / HTTP/1.1\r\nHost: h\r\n" + fields).empty();
}

/// The body of a chunked message given in pieces of that size; `!` before what was refused.
std::string decode(const std::string& wire, std::size_t piece, std::size_t* used = nullptr) {
  chunk_decoder chunks;
  std::string body;
  std::size_t taken = 0;
  try {
    while (taken < wire.size() && !chunks.done()) {
      const auto count = std::min(piece, wire.size() - taken);
      taken += chunks.feed(std::string_view(wire).substr(taken, count), body);
    }
  } catch (const api_error&) {
    return "!" + body;
  }
  if (used != nullptr) *used = taken;
  return chunks.done() ? body : "?" + body;
}

}  // namespace

TEST_CASE("http_head: a usual request is read as it is") {
  const auto head = parse(
      "POST /v1/chat/completions?a=b?c HTTP/1.1\r\nHost: localhost:8000\r\n"
      "Content-Length: 12\r\nX-Thing:  a%20b\t\r\nExpect: 100-Continue\r\n");
  CHECK(head.method == "POST");
  CHECK(head.target == "/v1/chat/completions?a=b?c");
  CHECK(head.authority == "localhost:8000");
  CHECK(head.content_length == 12);
  CHECK(head.has_body());
  CHECK(head.expects_continue);
  CHECK_FALSE(head.closes);
  CHECK_FALSE(head.chunked);
  CHECK_FALSE(head.http_1_0);
  const auto field = std::pair<std::string, std::string>("X-Thing", "a%20b");
  CHECK(std::find(head.fields.begin(), head.fields.end(), field) != head.fields.end());
}

TEST_CASE("http_head: the length is told once, in digits, or in chunks") {
  CHECK(with("Content-Length: 0\r\n").content_length == 0);
  CHECK_FALSE(with("Content-Length: 0\r\n").has_body());
  CHECK_FALSE(with("").has_body());
  CHECK(with("Transfer-Encoding: Chunked\r\n").chunked);
  for (const std::string fields :
       {"Content-Length: 1\r\nContent-Length: 1\r\n", "Content-Length: 0\r\nContent-Length: 5\r\n",
        "Content-Length: +1\r\n", "Content-Length: -1\r\n", "Content-Length: 1, 1\r\n",
        "Content-Length: 0x1\r\n", "Content-Length: %30\r\n", "Content-Length:\r\n",
        "Content-Length: 1 2\r\n", "Content-Length: 9999999999999999999\r\n",
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding:\r\n", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunke%64\r\n"}) {
    CAPTURE(fields);
    CHECK(refuses(fields));
  }
  CHECK_FALSE(refusal("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n").empty());
}

TEST_CASE("http_head: a line that programs read in two ways is refused") {
  for (const auto& fields :
       {std::string("Content-Length : 5\r\n"), std::string(" Content-Length: 5\r\n"),
        std::string("X: a\r\n folded\r\n"), std::string("no colon\r\n"), std::string(": value\r\n"),
        std::string("X: a\nY: b\r\n"), std::string("X: a\rY: b\r\n"), std::string("X: a\0b\r\n", 8),
        std::string("X\0: a\r\n", 7), std::string("X: a\x01\r\n"), std::string("X: a\x7f\r\n"),
        std::string("X (comment): a\r\n"), std::string("X: unended")}) {
    CAPTURE(fields);
    CHECK(refuses(fields));
  }
  CHECK_FALSE(refuses("X: \xC3\xA9\r\n"));  // bytes above ASCII are somebody's old letters
  CHECK_FALSE(refuses("X:\r\n"));
}

TEST_CASE("http_head: the request line has three words and a known version") {
  for (const std::string line :
       {"GET /", "GET  / HTTP/1.1", "GET / HTTP/2.0", "GET / HTTP/1.1 ", " GET / HTTP/1.1",
        "GET /a b HTTP/1.1", "GET a HTTP/1.1", "G(T / HTTP/1.1", "", "GET / http/1.1"}) {
    CAPTURE(line);
    CHECK_FALSE(refusal(line + std::string("\r\nHost: h\r\n")).empty());
  }
  CHECK(parse("OPTIONS * HTTP/1.1\r\nHost: h\r\n").target == "*");
}

TEST_CASE("http_head: slashes in a row are one in the path, and what they are in the query") {
  const auto target = [](const std::string& given) {
    return parse("GET " + given + " HTTP/1.1\r\nHost: h\r\n").target;
  };
  CHECK(target("//v1///models//?a=//b") == "/v1/models/?a=//b");
  CHECK(target("http://h//v1//x") == "/v1/x");
  CHECK(target("/models/a%2F%2Fb") == "/models/a%2F%2Fb");
  CHECK(target("//") == "/");
}

TEST_CASE("http_head: whom the client means is told once") {
  CHECK_FALSE(refusal("GET / HTTP/1.1\r\n").empty());
  CHECK_FALSE(refusal("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n").empty());
  CHECK(refusal("GET / HTTP/1.0\r\n").empty());
  const auto absolute =
      parse("GET http://evil.example:1/version?x HTTP/1.1\r\nHost: localhost\r\n");
  CHECK(absolute.authority == "evil.example:1");  // what it asks for, so the guard judges that
  CHECK(absolute.target == "/version?x");
  CHECK(parse("GET http://h HTTP/1.1\r\nHost: h\r\n").target == "/");
  CHECK(parse("GET http://h?q HTTP/1.1\r\nHost: h\r\n").target == "/?q");
  CHECK(parse("GET /x?u=http://h HTTP/1.1\r\nHost: me\r\n").authority == "me");
}

TEST_CASE("http_head: a connection ends when one of the options says so") {
  CHECK(with("Connection: close\r\n").closes);
  CHECK(with("Connection: TE, Close\r\n").closes);
  CHECK_FALSE(with("Connection: keep-alive\r\n").closes);
  CHECK_FALSE(with("Connection: closed\r\n").closes);
}

TEST_CASE("chunks: a body is the same however it is cut") {
  const std::string wire =
      "5\r\nhello\r\n0A;name=\"x\"\r\n0123456789\r\n000\r\nTrailer: t\r\n\r\nNEXT";
  for (std::size_t piece = 1; piece <= wire.size(); ++piece) {
    std::size_t used = 0;
    CHECK(decode(wire, piece, &used) == "hello0123456789");
    CHECK(wire.substr(used) == "NEXT");
  }
}

TEST_CASE("chunks: what is doubtful is refused") {
  for (const std::string wire :
       {"5\r\nhelloXX\r\n0\r\n\r\n", "5\r\nhello0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n", "5z\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n", "\r\nhello", "-1\r\n", "ffffffffffffffff\r\n"}) {
    for (const std::size_t piece : {std::size_t{1}, std::size_t{3}, wire.size()}) {
      CAPTURE(wire);
      CHECK(decode(wire, piece).substr(0, 1) == "!");
    }
  }
  CHECK(decode("5\r\nhel", 2) == "?hel");
  CHECK(decode("5;" + std::string(10'000, 'x') + "\r\n", 100).substr(0, 1) == "!");
  CHECK(decode("0\r\n" + std::string(9'000, 'x'), 100).substr(0, 1) == "!");
}

TEST_CASE("http_head: random bytes are taken or refused, and nothing else") {
  test::generator random(2801);
  const std::string letters = "GET /:\r\n\r\nHost HTTP/1.1 Content-Length5chunked";
  for (int round = 0; round < 3000; ++round) {
    std::string bytes = random.chance(50) ? "GET / HTTP/1.1\r\nHost: h\r\n" : "";
    for (std::size_t i = random.below(60); i > 0; --i)
      bytes += letters[random.below(letters.size())];
    refusal(bytes);
    decode(bytes, 1 + random.below(9));
  }
}
