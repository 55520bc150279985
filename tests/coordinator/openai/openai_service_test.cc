// The endpoints over a real HTTP server and a driver, whose pipeline is a fake.

#include "coordinator/openai/openai_service.h"

#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "coordinator/http/http_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/driver_testing.h"
#include "tests/coordinator/openai/openai_testing.h"
#include "tests/support/event_counter.h"
#include "tests/support/raw_http_client.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class EndedJobs : public PipelineObserver {
 public:
  void OnFirstToken(JobPriority, absl::Duration) override {}
  void OnTokenGap(JobPriority, absl::Duration) override {}
  void OnJobEnded(JobPriority, JobOutcome outcome, absl::Duration) override {
    if (outcome == JobOutcome::kCancelled) cancelled.Add();
  }
  void OnStepReturned(int64_t, absl::Duration) override {}

  EventCounter cancelled;
};

/// A stream's body, its chunks put together.
std::string Unchunk(absl::string_view body) {
  std::string text;
  while (true) {
    const size_t line = body.find("\r\n");
    uint32_t size = 0;
    if (line == absl::string_view::npos || !absl::SimpleHexAtoi(body.substr(0, line), &size) ||
        size == 0) {
      return text;
    }
    absl::StrAppend(&text, body.substr(line + 2, size));
    body.remove_prefix(line + 2 + size + 2);
  }
}

std::vector<json> Events(const std::string& text) {
  std::vector<json> events;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find("\n\n", at);
    EXPECT_EQ(text.substr(at, 6), "data: ");
    const std::string data = text.substr(at + 6, end - at - 6);
    if (data != "[DONE]") events.push_back(json::parse(data));
    at = end + 2;
  }
  return events;
}

class OpenAiServiceTest : public ::testing::Test {
 protected:
  static FakePipeline::Options PipelineOptions() {
    FakePipeline::Options options;
    options.kv_blocks = 256;
    options.model.vocab_size = 2048;
    return options;
  }
  PipelineDriver::Options DriverOptions() {
    PipelineDriver::Options options;
    options.vocab_size = 2048;
    options.context_tokens = 256;
    options.prefill_chunk = 8;
    options.max_queued_jobs = 4;
    options.observer = &ended_;
    return options;
  }

  OpenAiServiceTest()
      : pipeline_(PipelineOptions()),
        driver_(DriverOptions()),
        service_({TinyModel(), [this](JobSpec spec) { return driver_.Submit(std::move(spec)); },
                  [this] { return driver_.CheckServing(); }}) {
    driver_.SetWaitingReason("waiting for workers");
  }
  ~OpenAiServiceTest() override {
    if (server_ != nullptr) server_->Stop(absl::ZeroDuration());
    service_.Stop();
    player_.reset();
    driver_.Shutdown();
  }

  void StartServer(std::optional<ApiKeys> keys = std::nullopt) {
    Router router;
    service_.AddRoutes(router);
    HttpServer::Options options;
    options.listen = "127.0.0.1:0";
    options.keys = std::move(keys);
    absl::StatusOr<std::unique_ptr<HttpServer>> server =
        HttpServer::Start(std::move(options), std::move(router));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void StartPipeline() { driver_.Attach(pipeline_.Connect()); }
  /// From now on steps come home by themselves.
  void Play() { player_ = std::make_unique<FakePipeline::Player>(&pipeline_, &driver_); }
  void StartAll() {
    StartServer();
    StartPipeline();
    Play();
  }

  /// The whole answer to a request on a connection of its own.
  std::string Ask(const std::string& method, const std::string& path, const json& body = nullptr) {
    RawHttpClient client(server_->address());
    client.SendRequest(method, path, body.is_null() ? "" : body.dump(), "Connection: close\r\n");
    return client.ReadToEnd();
  }
  static json BodyOf(const std::string& answer) {
    return json::parse(answer.substr(answer.find("\r\n\r\n") + 4));
  }
  /// The body of an answer that must be 200.
  json MustPost(const std::string& path, const json& body) {
    const std::string answer = Ask("POST", path, body);
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
    return BodyOf(answer);
  }
  std::vector<json> MustStream(const std::string& path, const json& body) {
    const std::string answer = Ask("POST", path, body);
    EXPECT_THAT(answer, AllOf(StartsWith("HTTP/1.1 200"),
                              HasSubstr("Content-Type: text/event-stream\r\n")));
    const std::string text = Unchunk(answer.substr(answer.find("\r\n\r\n") + 4));
    EXPECT_THAT(text, EndsWith("data: [DONE]\n\n"));
    return Events(text);
  }
  static json Greedy(json more = json::object()) {
    more.update({{"temperature", 0}, {"ignore_eos", true}});
    return CompletionBody(more);
  }

  EndedJobs ended_;
  FakePipeline pipeline_;
  PipelineDriver driver_;
  OpenAiService service_;
  std::unique_ptr<FakePipeline::Player> player_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(OpenAiServiceTest, ListsTheModel) {
  StartServer();
  const json model = {{"id", "tiny-r1"},
                      {"object", "model"},
                      {"created", 1'700'000'000},
                      {"owned_by", "caravan"},
                      {"max_model_len", 256}};
  EXPECT_EQ(BodyOf(Ask("GET", "/v1/models")),
            (json{{"object", "list"}, {"data", json::array({model})}}));
  EXPECT_EQ(BodyOf(Ask("GET", "/v1/models/tiny-r1")), model);
  const std::string unknown = Ask("GET", "/v1/models/org/other");
  EXPECT_THAT(unknown, AllOf(StartsWith("HTTP/1.1 404"), HasSubstr("org/other")));
  EXPECT_EQ(BodyOf(unknown)["error"]["code"], "model_not_found");
}

TEST_F(OpenAiServiceTest, IsHealthyOnlyWhileAPipelineServes) {
  StartServer();
  EXPECT_THAT(Ask("GET", "/health"),
              AllOf(StartsWith("HTTP/1.1 503"), HasSubstr("Retry-After: 1\r\n"),
                    HasSubstr("waiting for workers")));
  StartPipeline();
  EXPECT_THAT(Ask("GET", "/health"), AllOf(StartsWith("HTTP/1.1 200"), HasSubstr("\"ok\"")));
  driver_.Detach(absl::UnavailableError("gone"));
  EXPECT_THAT(Ask("GET", "/health"), StartsWith("HTTP/1.1 503"));
}

TEST_F(OpenAiServiceTest, WithKeysOnlyHealthGoesWithout) {
  const TempDir dir;
  StartServer(*ApiKeys::Load(dir.Write("keys", "sk-1")));
  EXPECT_THAT(Ask("GET", "/health"), StartsWith("HTTP/1.1 503"));
  for (const char* path : {"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"}) {
    EXPECT_THAT(Ask("POST", path, json::object()), StartsWith("HTTP/1.1 401"));
  }
  EXPECT_THAT(Ask("GET", "/v1/models"), StartsWith("HTTP/1.1 401"));
}

TEST_F(OpenAiServiceTest, WithoutAPipelineItAnswersThatAtOnce) {
  StartServer();
  EXPECT_THAT(Ask("POST", "/v1/chat/completions", ChatBody()),
              AllOf(StartsWith("HTTP/1.1 503"), HasSubstr("Retry-After: 1\r\n"),
                    HasSubstr("waiting for workers")));
  // What is wrong for ever is said first.
  EXPECT_THAT(Ask("POST", "/v1/chat/completions", ChatBody({{"n", 0}})),
              StartsWith("HTTP/1.1 400"));
}

TEST_F(OpenAiServiceTest, AWholeReplyIsTheModels) {
  StartAll();
  JobSpec spec;
  spec.prompt = Ids("<｜begin▁of▁sentence｜>hi");
  spec.max_new_tokens = 20;
  const std::vector<int32_t> ids = PipelineOptions().model.Reply(spec);
  const json reply = MustPost("/v1/completions", Greedy({{"max_tokens", 20}, {"logprobs", 0}}));
  EXPECT_EQ(reply["object"], "text_completion");
  EXPECT_EQ(reply["choices"][0]["text"], *TinyText().tokenizer().Decode(ids));
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(reply["choices"][0]["logprobs"]["tokens"].size(), 20u);
  EXPECT_EQ(reply["usage"]["completion_tokens"], 20);
  EXPECT_EQ(reply["usage"]["prompt_tokens"], static_cast<int64_t>(spec.prompt.size()));
}

TEST_F(OpenAiServiceTest, AStreamIsTheSameInPieces) {
  StartAll();
  json body = ChatBody({{"temperature", 0}, {"max_tokens", 30}, {"n", 2}, {"logprobs", true}});
  const json whole = MustPost("/v1/chat/completions", body);
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  const std::vector<json> events = MustStream("/v1/chat/completions", body);
  std::vector<std::string> contents(2);
  std::vector<std::string> thoughts(2);
  std::vector<size_t> tokens(2);
  for (const json& event : events) {
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    for (const json& choice : event["choices"]) {
      const auto index = choice["index"].get<size_t>();
      contents[index] += choice["delta"].value("content", "");
      thoughts[index] += choice["delta"].value("reasoning_content", "");
      if (choice["logprobs"].is_object()) {
        tokens[index] += choice["logprobs"]["content"].size();
        tokens[index] += choice["logprobs"]["reasoning_content"].size();
      }
    }
  }
  for (size_t i = 0; i < 2; ++i) {
    const json& message = whole["choices"][i]["message"];
    EXPECT_EQ(contents[i], message["content"]);
    const json& thought = message["reasoning_content"];
    EXPECT_EQ(thoughts[i], thought.is_null() ? "" : thought.get<std::string>());
  }
  EXPECT_EQ(events.back()["choices"], json::array());
  const json& usage = events.back()["usage"];
  EXPECT_EQ(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
  EXPECT_EQ(usage["completion_tokens"], tokens[0] + tokens[1]);
}

TEST_F(OpenAiServiceTest, EchoScoresThePrompt) {
  StartAll();
  const std::vector<int32_t> ids = Ids("a b c d e f g h i j k l m n o p q r s t");
  const json reply =
      MustPost("/v1/completions",
               Greedy({{"prompt", ids}, {"max_tokens", 1}, {"echo", true}, {"logprobs", 0}}));
  const json& logprobs = reply["choices"][0]["logprobs"]["token_logprobs"];
  JobSpec spec;
  spec.prompt = ids;
  const std::vector<ScoredToken> scores = PipelineOptions().model.PromptScores(spec);
  ASSERT_EQ(logprobs.size(), ids.size() + 1);
  EXPECT_EQ(logprobs[0], nullptr);
  for (size_t i = 1; i < ids.size(); ++i) EXPECT_EQ(logprobs[i], scores[i - 1].log_probability);
  const json none =
      MustPost("/v1/completions",
               Greedy({{"prompt", ids}, {"max_tokens", 0}, {"echo", true}, {"logprobs", 0}}));
  EXPECT_EQ(none["choices"][0]["logprobs"]["token_logprobs"].size(), ids.size());
  EXPECT_EQ(none["usage"]["completion_tokens"], 0);
}

TEST_F(OpenAiServiceTest, ALargeBodyIsReadOnTheSide) {
  StartAll();
  const json large = Greedy({{"user", std::string(100'000, 'x')}, {"max_tokens", 5}, {"n", 4}});
  json small = large;
  small.erase("user");
  EXPECT_EQ(MustPost("/v1/completions", large)["choices"],
            MustPost("/v1/completions", small)["choices"]);
  // And its client may be gone by then.
  for (int i = 0; i < 10; ++i) {
    RawHttpClient client(server_->address());
    client.SendRequest("POST", "/v1/completions", large.dump());
  }
  EXPECT_EQ(MustPost("/v1/completions", large)["choices"].size(), 4u);
}

TEST_F(OpenAiServiceTest, BadRequestsAreAnsweredInOpenAisShape) {
  StartAll();
  const std::string answer = Ask("POST", "/v1/chat/completions", ChatBody({{"temperature", -1}}));
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 400"));
  EXPECT_EQ(BodyOf(answer)["error"]["type"], "invalid_request_error");
  EXPECT_EQ(BodyOf(answer)["error"]["param"], "temperature");
  EXPECT_EQ(BodyOf(answer)["error"]["code"], nullptr);
  EXPECT_TRUE(BodyOf(answer)["error"]["message"].is_string());
  const std::string grammar = Ask("POST", "/v1/chat/completions",
                                  ChatBody({{"response_format", {{"type", "json_object"}}}}));
  EXPECT_THAT(grammar, AllOf(StartsWith("HTTP/1.1 501"), HasSubstr("response_format"),
                             HasSubstr("x-should-retry: false\r\n")));
  RawHttpClient client(server_->address());
  for (const std::string body : {"{\"temperature\": NaN}", "{", "[]", "\xff\xfe"}) {
    client.SendRequest("POST", "/v1/completions", body);
    EXPECT_THAT(client.ReadAnswer(),
                AllOf(StartsWith("HTTP/1.1 400"), HasSubstr("invalid_request_error")));
  }
  client.SendRequest("POST", "/v1/completions", Greedy().dump());
  EXPECT_THAT(client.ReadAnswer(), StartsWith("HTTP/1.1 200")) << "the connection goes on";
}

TEST_F(OpenAiServiceTest, AFullQueueIsSaidWithWhenToTryAgain) {
  StartServer();
  driver_.PauseAdmission();
  StartPipeline();
  Play();
  // Four jobs wait: the queue is full.
  RawHttpClient waiting(server_->address());
  waiting.SendRequest("POST", "/v1/completions",
                      Greedy({{"n", 4}, {"stream", true}, {"max_tokens", 3}}).dump(),
                      "Connection: close\r\n");
  waiting.ReadUntil("\r\n\r\n");  // its answer has begun
  const std::string answer = Ask("POST", "/v1/completions", Greedy());
  EXPECT_THAT(answer, AllOf(StartsWith("HTTP/1.1 429"), HasSubstr("Retry-After: 1\r\n")));
  EXPECT_EQ(BodyOf(answer)["error"]["type"], "rate_limit_error");
  // A request of several jobs gets in whole or not at all.
  EXPECT_EQ(driver_.List().size(), 4u);
  driver_.ResumeAdmission();
  EXPECT_THAT(waiting.ReadToEnd(), HasSubstr("data: [DONE]\n\n"));
  MustPost("/v1/completions", Greedy());
}

TEST_F(OpenAiServiceTest, WhenAClientVanishesInMidStreamItsJobsAreCancelled) {
  StartServer();
  StartPipeline();
  auto client = std::make_unique<RawHttpClient>(server_->address());
  client->SendRequest(
      "POST", "/v1/completions",
      Greedy({{"n", 2}, {"stream", true}, {"max_tokens", 200}, {"logprobs", 0}}).dump());
  client->ReadUntil("\r\n\r\n");
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(pipeline_.Deliver(&driver_, pipeline_.Take()).ok());
  }
  EXPECT_THAT(client->ReadUntil("data: {"), HasSubstr("data: {"));
  EXPECT_EQ(driver_.List().size(), 2u);
  client.reset();
  EXPECT_TRUE(ended_.cancelled.Reaches(2));
  EXPECT_EQ(driver_.List().size(), 0u);
  Drain(&driver_, &pipeline_);
}

TEST_F(OpenAiServiceTest, WhenAClientVanishesThatWaitsForAWholeReplyItsJobIsCancelled) {
  StartServer();
  StartPipeline();
  auto client = std::make_unique<RawHttpClient>(server_->address());
  client->SendRequest("POST", "/v1/completions", Greedy({{"max_tokens", 200}}).dump());
  v1::Step step = pipeline_.Take();  // so it was submitted
  client.reset();
  EXPECT_TRUE(ended_.cancelled.Reaches(1));
  ASSERT_TRUE(pipeline_.Deliver(&driver_, std::move(step)).ok());
  Drain(&driver_, &pipeline_);
}

TEST_F(OpenAiServiceTest, TokenizesThereAndBack) {
  StartServer();
  const json tokens = MustPost("/tokenize", {{"prompt", "a b"}, {"add_special_tokens", false}});
  EXPECT_EQ(tokens["tokens"], Ids("a b"));
  EXPECT_EQ(MustPost("/detokenize", {{"tokens", tokens["tokens"]}}), (json{{"prompt", "a b"}}));
  EXPECT_THAT(Ask("POST", "/detokenize", {{"tokens", "x"}}), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Ask("POST", "/tokenize", json::object()), StartsWith("HTTP/1.1 400"));
}

}  // namespace
}  // namespace caravan
