// The server over real sockets: what well-behaved clients get, and what bad ones cost.

#include "coordinator/http/http_server.h"

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/event_counter.h"
#include "tests/support/raw_http_client.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

/// A test's server: /echo answers with what it got, /held keeps its responders, /stream streams.
class HttpServerTest : public ::testing::Test {
 protected:
  ~HttpServerTest() override {
    if (server_ != nullptr) server_->Stop(absl::ZeroDuration());
  }

  void Start(HttpLimits limits = {}, std::optional<ApiKeys> keys = std::nullopt) {
    Router router;
    const HttpHandler echo = [](HttpRequest request, std::shared_ptr<Responder> responder) {
      responder->Send(
          {200,
           "text/plain",
           absl::StrCat(request.method, " ", request.path, "?", request.query, " ", request.body),
           {}});
    };
    router.Handle("GET", "/echo", echo);
    router.Handle("POST", "/echo", echo, {false, 1000});
    router.Handle("GET", "/open", echo, {true});
    router.Handle("GET", "/dropped", [](HttpRequest, std::shared_ptr<Responder>) {});
    // The answer comes from another thread, while the handler still holds the responder.
    router.Handle("GET", "/elsewhere", [](HttpRequest, std::shared_ptr<Responder> responder) {
      std::thread([responder] {
        responder->Send({200, "text/plain", "from elsewhere", {}});
      }).join();
    });
    router.Handle("POST", "/held", [this](HttpRequest, std::shared_ptr<Responder> responder) {
      responder->SetEvents([this] { gone_.Add(); }, nullptr);
      {
        MutexLock lock(&mu_);
        held_.push_back(std::move(responder));
      }
      holding_.Add();
    });
    router.Handle("GET", "/flood", [this](HttpRequest, std::shared_ptr<Responder> responder) {
      StartFlood(std::move(responder));
    });
    absl::StatusOr<std::unique_ptr<HttpServer>> server =
        HttpServer::Start({"127.0.0.1:0", std::move(keys), 2, limits}, std::move(router));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  /// Writes as fast as the client reads, for ever.
  void StartFlood(std::shared_ptr<Responder> responder) {
    Responder* const raw = responder.get();
    const auto pump = [this, raw] {
      while (raw->writable()) {
        raw->Write(std::string(4096, 'x'));
        flooded_ += 4096;
      }
    };
    responder->SetEvents([this, responder] { gone_.Add(); },  // keeps the responder until then
                         pump);
    responder->StartStream({200, "text/plain", "", {}});
    pump();
    holding_.Add();
  }

  std::shared_ptr<Responder> Held(size_t i) {
    EXPECT_TRUE(holding_.Reaches(static_cast<int>(i) + 1));
    MutexLock lock(&mu_);
    return held_[i];
  }

  const std::string address() const { return server_->address(); }

  EventCounter gone_;
  EventCounter holding_;
  std::atomic<int64_t> flooded_{0};
  Mutex mu_;
  std::vector<std::shared_ptr<Responder>> held_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersRequestAfterRequestOnOneConnection) {
  Start();
  RawHttpClient client(address());
  client.SendRequest("GET", "/echo?a=1&b");
  EXPECT_THAT(client.ReadAnswer(),
              AllOf(StartsWith("HTTP/1.1 200 OK\r\n"), HasSubstr("Content-Type: text/plain\r\n"),
                    EndsWith("\r\n\r\nGET /echo?a=1&b ")));
  client.SendRequest("POST", "/echo", "body");
  EXPECT_THAT(client.ReadAnswer(), EndsWith("POST /echo? body"));
  client.Send(
      "POST http://example.org/echo HTTP/1.1\r\nHost: localhost\r\n"
      "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
  EXPECT_THAT(client.ReadAnswer(), EndsWith("POST /echo? abcde"));
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  Start();
  RawHttpClient client(address());
  std::string requests;
  for (int i = 0; i < 100; ++i) {
    absl::StrAppend(&requests, "GET /echo?", i, " HTTP/1.1\r\nHost: localhost\r\n\r\n");
  }
  client.Send(requests);
  for (int i = 0; i < 100; ++i) {
    EXPECT_THAT(client.ReadAnswer(), EndsWith(absl::StrCat("GET /echo?", i, " ")));
  }
}

TEST_F(HttpServerTest, HeadHasTheLengthWithoutTheBody) {
  Start();
  RawHttpClient client(address());
  client.SendRequest("HEAD", "/echo");
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), HasSubstr("Content-Length: 12\r\n"));
  client.SendRequest("GET", "/echo");
  EXPECT_THAT(client.ReadAnswer(), EndsWith("GET /echo? "));
}

TEST_F(HttpServerTest, AnOldClientGetsItsAnswerAndTheEnd) {
  Start();
  RawHttpClient client(address());
  client.Send("GET /echo HTTP/1.0\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(), AllOf(StartsWith("HTTP/1.0 200"), EndsWith("GET /echo? ")));
}

TEST_F(HttpServerTest, WhatIsNotServedIsSaidInOpenAisShape) {
  Start();
  RawHttpClient client(address());
  client.SendRequest("GET", "/nowhere");
  EXPECT_THAT(client.ReadAnswer(),
              AllOf(StartsWith("HTTP/1.1 404"), HasSubstr("nothing is served at /nowhere"),
                    HasSubstr("\"type\":\"invalid_request_error\"")));
  client.SendRequest("DELETE", "/echo");
  EXPECT_THAT(client.ReadAnswer(),
              AllOf(StartsWith("HTTP/1.1 405"), HasSubstr("Allow: GET, HEAD, OPTIONS, POST\r\n")));
  client.SendRequest("GET", "/dropped");
  EXPECT_THAT(client.ReadAnswer(), AllOf(StartsWith("HTTP/1.1 500"), HasSubstr("server_error")));
}

TEST_F(HttpServerTest, OptionsNamesMethodsAndLetsLocalPagesIn) {
  Start();
  RawHttpClient client(address());
  client.SendRequest("OPTIONS", "/echo", "",
                     "Origin: http://localhost:3000\r\nAccess-Control-Request-Method: POST\r\n"
                     "Access-Control-Request-Headers: authorization, x-stainless-os\r\n");
  EXPECT_THAT(client.ReadAnswer(),
              AllOf(StartsWith("HTTP/1.1 204"), HasSubstr("Allow: GET, HEAD, OPTIONS, POST\r\n"),
                    HasSubstr("Access-Control-Allow-Origin: http://localhost:3000\r\n"),
                    HasSubstr("Access-Control-Allow-Headers: authorization, x-stainless-os\r\n")));
  client.SendRequest("GET", "/echo", "", "Origin: http://localhost:3000\r\n");
  EXPECT_THAT(client.ReadAnswer(), AllOf(StartsWith("HTTP/1.1 200"),
                                         HasSubstr("Access-Control-Allow-Origin: http://local")));
  client.SendRequest("GET", "/echo", "", "Origin: https://example.com\r\n");
  EXPECT_THAT(client.ReadAnswer(),
              AllOf(StartsWith("HTTP/1.1 403"), Not(HasSubstr("Access-Control-Allow-Origin"))));
}

TEST_F(HttpServerTest, WithKeysOnlyOpenRoutesGoWithout) {
  const TempDir dir;
  Start({}, *ApiKeys::Load(dir.Write("keys", "sk-1")));
  RawHttpClient client(address());
  for (const char* path : {"/echo", "/nowhere"}) {
    client.SendRequest("GET", path);
    EXPECT_THAT(client.ReadAnswer(),
                AllOf(StartsWith("HTTP/1.1 401"), HasSubstr("WWW-Authenticate: Bearer\r\n"),
                      HasSubstr("\"code\":\"invalid_api_key\"")));
  }
  client.SendRequest("GET", "/open");
  EXPECT_THAT(client.ReadAnswer(), StartsWith("HTTP/1.1 200"));
  client.SendRequest("GET", "/echo", "", "Authorization: Bearer sk-1\r\n");
  EXPECT_THAT(client.ReadAnswer(), StartsWith("HTTP/1.1 200"));
  // Its body is not read.
  client.SendRequest("POST", "/echo", "secret");
  EXPECT_THAT(client.ReadToEnd(), AllOf(StartsWith("HTTP/1.1 401"), Not(HasSubstr("no end"))));
}

TEST_F(HttpServerTest, OtherAddressesThanLoopbackNeedKeys) {
  for (const char* listen : {"0.0.0.0:0", "[::]:0"}) {
    const absl::Status status = HttpServer::Start({listen, std::nullopt, 1, {}}, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), AllOf(HasSubstr(listen), HasSubstr("API keys")));
  }
  const TempDir dir;
  const ApiKeys keys = *ApiKeys::Load(dir.Write("keys", "sk-1"));
  EXPECT_TRUE(HttpServer::Start({"0.0.0.0:0", keys, 1, {}}, {}).ok());
  EXPECT_TRUE(HttpServer::Start({"localhost:0", std::nullopt, 1, {}}, {}).ok());
  for (const char* bad :
       {"8080", "127.0.0.1", "256.0.0.1:0", "127.0.0.1:http", "nowhere.invalid:0"}) {
    EXPECT_THAT(HttpServer::Start({bad, keys, 1, {}}, {}).status().message(), HasSubstr(bad));
  }
}

TEST_F(HttpServerTest, ATakenPortIsNamed) {
  Start();
  const absl::Status status = HttpServer::Start({address(), std::nullopt, 1, {}}, {}).status();
  EXPECT_THAT(status.message(), AllOf(HasSubstr(address()), HasSubstr("in use")));
}

TEST_F(HttpServerTest, ALargeBodyIsRefusedUnread) {
  Start();
  {
    RawHttpClient client(address());
    client.Send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\nx");
    EXPECT_THAT(client.ReadToEnd(),
                AllOf(StartsWith("HTTP/1.1 413"), HasSubstr("1000 bytes"),
                      HasSubstr("Connection: close\r\n"), Not(HasSubstr("no end"))));
  }
  {
    RawHttpClient client(address());
    client.Send("POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 3; ++i) client.Send(absl::StrCat("190\r\n", std::string(400, 'x'), "\r\n"));
    EXPECT_THAT(client.ReadToEnd(), StartsWith("HTTP/1.1 413"));
  }
  RawHttpClient client(address());
  client.SendRequest("POST", "/echo", std::string(1000, 'x'));
  EXPECT_THAT(client.ReadAnswer(), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, BodiesTogetherAreBounded) {
  HttpLimits limits;
  limits.max_bodies_bytes = 1500;
  Start(limits);
  RawHttpClient slow(address());
  slow.Send(absl::StrCat("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n",
                         std::string(999, 'x')));
  std::string answer;
  // Until the server has read what the slow one sent.
  for (int i = 0; i < 10000 && !absl::StartsWith(answer, "HTTP/1.1 503"); ++i) {
    RawHttpClient other(address());
    other.SendRequest("POST", "/echo", std::string(900, 'y'));
    answer = other.ReadAnswer();
  }
  EXPECT_THAT(answer, AllOf(StartsWith("HTTP/1.1 503"), HasSubstr("Retry-After: 1\r\n")));
  slow.Send("x");
  EXPECT_THAT(slow.ReadAnswer(), StartsWith("HTTP/1.1 200"));
  RawHttpClient other(address());
  other.SendRequest("POST", "/echo", std::string(900, 'y'));
  EXPECT_THAT(other.ReadAnswer(), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, AClientThatAsksFirstIsToldToGoOn) {
  Start();
  RawHttpClient client(address());
  client.Send(
      "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
      "Expect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("body");
  EXPECT_THAT(client.ReadAnswer(), EndsWith("POST /echo? body"));
}

TEST_F(HttpServerTest, WhatIsNotHttpIsAnsweredAndDropped) {
  Start();
  for (const std::string& bad :
       {std::string("NOT HTTP\r\n\r\n"), std::string("GET / HTTP/3.7\r\n\r\n"),
        std::string("\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 11),  // TLS
        std::string("GET /echo HTTP/1.1\r\nbad header\r\n\r\n"),
        std::string("POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
        std::string("POST /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        std::string("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")}) {
    RawHttpClient client(address());
    client.Send(bad);
    EXPECT_THAT(client.ReadToEnd(), AllOf(StartsWith("HTTP/1.1 400"), Not(HasSubstr("no end"))))
        << bad;
  }
  RawHttpClient client(address());
  client.SendRequest("GET", "/echo", "", absl::StrCat("X: ", std::string(40000, 'x'), "\r\n"));
  EXPECT_THAT(client.ReadToEnd(), StartsWith("HTTP/1.1 431"));
}

TEST_F(HttpServerTest, SlowHeadersBodiesAndIdlersAreDropped) {
  HttpLimits limits;
  limits.header_timeout = limits.body_timeout = limits.idle_timeout = absl::Milliseconds(50);
  Start(limits);
  for (const char* part : {"", "GET /ec", "POST /echo HTTP/1.1\r\nContent-Length: 5\r\n\r\nab"}) {
    RawHttpClient client(address());
    client.Send(part);
    EXPECT_EQ(client.ReadToEnd(), "") << part;
  }
  RawHttpClient idle(address());
  idle.SendRequest("GET", "/echo");
  EXPECT_THAT(idle.ReadToEnd(), AllOf(StartsWith("HTTP/1.1 200"), Not(HasSubstr("no end"))));
}

TEST_F(HttpServerTest, WhatAnotherThreadAnsweredIsNotDroppedWithTheResponder) {
  Start();
  RawHttpClient client(address());
  for (int i = 0; i < 20; ++i) {
    client.SendRequest("GET", "/elsewhere");
    EXPECT_THAT(client.ReadAnswer(), AllOf(StartsWith("HTTP/1.1 200"), EndsWith("from elsewhere")));
  }
}

TEST_F(HttpServerTest, ConnectionsPastTheLimitAreToldSo) {
  HttpLimits limits;
  limits.max_connections = 2;
  Start(limits);
  RawHttpClient one(address());
  auto two = std::make_unique<RawHttpClient>(address());
  for (RawHttpClient* client : {&one, two.get()}) {
    client->SendRequest("GET", "/echo");
    EXPECT_THAT(client->ReadAnswer(), StartsWith("HTTP/1.1 200"));
  }
  RawHttpClient three(address());
  EXPECT_THAT(three.ReadToEnd(), AllOf(StartsWith("HTTP/1.1 503"), HasSubstr("too many")));
  two.reset();
  std::string answer;  // once the server has noticed
  for (int i = 0; i < 10000 && !absl::StartsWith(answer, "HTTP/1.1 200"); ++i) {
    RawHttpClient next(address());
    next.SendRequest("GET", "/echo");
    answer = next.ReadAnswer();
  }
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, StreamsInChunks) {
  Start();
  RawHttpClient client(address());
  client.SendRequest("POST", "/held");
  const std::shared_ptr<Responder> responder = Held(0);
  responder->StartStream({200, "text/event-stream", "", {{"Cache-Control", "no-cache"}}});
  EXPECT_THAT(client.ReadUntil("\r\n\r\n"), AllOf(HasSubstr("Transfer-Encoding: chunked\r\n"),
                                                  HasSubstr("Cache-Control: no-cache\r\n")));
  responder->Write("data: 1\n\n");
  EXPECT_EQ(client.ReadUntil("1\n\n\r\n"), "9\r\ndata: 1\n\n\r\n");
  responder->Write("data: 2\n\n");
  responder->Finish();
  responder->Write("too late");
  EXPECT_EQ(client.ReadUntil("0\r\n\r\n"), "9\r\ndata: 2\n\n\r\n0\r\n\r\n");
  client.SendRequest("GET", "/echo");
  EXPECT_THAT(client.ReadAnswer(), EndsWith("GET /echo? "));
}

TEST_F(HttpServerTest, AStreamToAnOldClientEndsWithTheConnection) {
  Start();
  RawHttpClient client(address());
  client.Send("POST /held HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const std::shared_ptr<Responder> responder = Held(0);
  responder->StartStream({200, "text/event-stream", "", {}});
  responder->Write("data: 1\n\n");
  responder->Finish();
  EXPECT_THAT(client.ReadToEnd(),
              AllOf(Not(HasSubstr("chunked")), EndsWith("\r\n\r\ndata: 1\n\n")));
}

TEST_F(HttpServerTest, ASilentEventStreamGetsComments) {
  HttpLimits limits;
  limits.ping_interval = absl::Milliseconds(10);
  Start(limits);
  RawHttpClient client(address());
  client.SendRequest("POST", "/held");
  Held(0)->StartStream({200, "text/event-stream", "", {}});
  EXPECT_THAT(client.ReadUntil(": keep-alive\n\n"), EndsWith(": keep-alive\n\n"));
  EXPECT_THAT(client.ReadUntil(": keep-alive\n\n"), EndsWith(": keep-alive\n\n"));
}

TEST_F(HttpServerTest, AStreamThatIsDroppedBreaksOff) {
  Start();
  RawHttpClient client(address());
  client.SendRequest("POST", "/held");
  Held(0)->StartStream({200, "text/event-stream", "", {}});
  {
    MutexLock lock(&mu_);
    held_.clear();
  }
  EXPECT_THAT(client.ReadToEnd(), AllOf(Not(EndsWith("0\r\n\r\n")), Not(HasSubstr("no end"))));
}

TEST_F(HttpServerTest, AClientThatVanishesIsNoticedWhileItsAnswerIsUnderWay) {
  Start();
  RawHttpClient waiting(address());
  waiting.SendRequest("POST", "/held");
  RawHttpClient streaming(address());
  ASSERT_TRUE(holding_.Reaches(1));
  streaming.SendRequest("POST", "/held", "", "X-More: 1\r\n");
  Held(1)->StartStream({200, "text/event-stream", "", {}});
  streaming.ReadUntil("\r\n\r\n");
  waiting.Close();
  EXPECT_TRUE(gone_.Reaches(1));
  streaming.Close();
  EXPECT_TRUE(gone_.Reaches(2));
  Held(0)->Send({});  // nothing happens
  Held(1)->Write("x");
}

TEST_F(HttpServerTest, AHalfClosedClientGetsWhatIsSaidAtOnce) {
  Start();
  RawHttpClient client(address());
  client.SendRequest("GET", "/echo");
  client.HalfClose();
  EXPECT_THAT(client.ReadToEnd(), AllOf(StartsWith("HTTP/1.1 200"), EndsWith("GET /echo? ")));
  RawHttpClient waiting(address());
  waiting.SendRequest("POST", "/held");
  waiting.HalfClose();
  EXPECT_EQ(waiting.ReadToEnd(), "");
  EXPECT_TRUE(gone_.Reaches(1));
}

TEST_F(HttpServerTest, AReaderThatStopsHoldsUpItsWriterAndIsDropped) {
  HttpLimits limits;
  limits.write_timeout = absl::Milliseconds(200);
  Start(limits);
  RawHttpClient stopped(address(), 4096);
  stopped.SendRequest("GET", "/flood");
  ASSERT_TRUE(holding_.Reaches(1));
  EXPECT_TRUE(gone_.Reaches(1));
  // The kernel's buffers and ours, not more.
  EXPECT_LT(flooded_, int64_t{16} << 20);
  RawHttpClient other(address());
  other.SendRequest("GET", "/echo");
  EXPECT_THAT(other.ReadAnswer(), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, AWriterIsToldWhenItsReaderHasCaughtUp) {
  Start();
  RawHttpClient client(address());
  client.SendRequest("GET", "/flood");
  ASSERT_TRUE(holding_.Reaches(1));
  // Far more than any buffer on the way holds.
  int64_t read = 0;
  while (read < (int64_t{64} << 20)) {
    const size_t n = client.ReadUntil("\r\n").size();
    ASSERT_GT(n, 0u);
    read += static_cast<int64_t>(n);
  }
}

TEST_F(HttpServerTest, IdleConnectionsAndFloodedOnesLeaveOthersAlone) {
  Start();
  std::vector<std::unique_ptr<RawHttpClient>> bad;
  for (int i = 0; i < 400; ++i) {
    bad.push_back(std::make_unique<RawHttpClient>(address(), 4096));
    bad.back()->Send(i % 3 == 0 ? "" : i % 3 == 1 ? "GET /ec" : "GET /flood HTTP/1.1\r\n\r\n");
  }
  RawHttpClient client(address());
  for (int i = 0; i < 100; ++i) {
    client.SendRequest("GET", absl::StrCat("/echo?", i));
    EXPECT_THAT(client.ReadAnswer(), EndsWith(absl::StrCat("?", i, " ")));
  }
}

TEST_F(HttpServerTest, StopsWhileAnswersAreUnderWay) {
  Start();
  RawHttpClient idle(address());
  idle.SendRequest("GET", "/echo");
  idle.ReadAnswer();
  RawHttpClient held(address());
  held.SendRequest("POST", "/held");
  const std::shared_ptr<Responder> responder = Held(0);
  std::thread stopper([this] { server_->Stop(absl::Seconds(120)); });
  EXPECT_EQ(idle.ReadToEnd(), "");
  responder->Send({200, "text/plain", "bye", {}});
  EXPECT_THAT(held.ReadToEnd(), AllOf(HasSubstr("Connection: close"), EndsWith("bye")));
  stopper.join();
  responder->Post([] {});  // drops it
}

TEST_F(HttpServerTest, StopClosesWhatDoesNotEnd) {
  Start();
  RawHttpClient held(address());
  held.SendRequest("POST", "/held");
  Held(0)->StartStream({200, "text/event-stream", "", {}});
  server_->Stop(absl::Milliseconds(10));
  EXPECT_THAT(held.ReadToEnd(), Not(HasSubstr("no end")));
  EXPECT_TRUE(gone_.Reaches(1));
}

}  // namespace
}  // namespace caravan
