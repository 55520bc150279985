// The session between jobs of a real driver and a client that the test plays.

#include "coordinator/openai/generation_session.h"

#include <deque>
#include <functional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/driver_testing.h"
#include "tests/coordinator/openai/openai_testing.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

/// Thread-safe. What is posted waits until the test runs it, on the test's thread.
class TestResponder : public Responder {
 public:
  void Send(HttpResponse response) override {
    MutexLock lock(&mu_);
    EXPECT_FALSE(response_.has_value());
    response_ = std::move(response);
  }
  void StartStream(HttpResponse head) override {
    MutexLock lock(&mu_);
    EXPECT_EQ(head.content_type, "text/event-stream");
    streaming_ = true;
  }
  void Write(std::string bytes) override {
    MutexLock lock(&mu_);
    EXPECT_TRUE(streaming_ && !finished_);
    written_ += bytes;
  }
  void Finish() override {
    MutexLock lock(&mu_);
    finished_ = true;
  }
  bool writable() const override {
    MutexLock lock(&mu_);
    return writable_;
  }
  void SetEvents(std::function<void()> on_gone, std::function<void()> on_drained) override {
    on_gone_ = std::move(on_gone);
    on_drained_ = std::move(on_drained);
  }
  void Post(std::function<void()> task) override {
    MutexLock lock(&mu_);
    tasks_.push_back(std::move(task));
    changed_.SignalAll();
  }

  /// Waits for the next task and runs it.
  void RunOne() {
    std::function<void()> task;
    {
      MutexLock lock(&mu_);
      while (tasks_.empty()) changed_.Wait(&mu_);
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
  void RunUntilAnswered() {
    while (!answered()) RunOne();
  }
  void set_writable(bool writable) {
    MutexLock lock(&mu_);
    writable_ = writable;
  }
  /// The client takes what was written.
  void Drain() {
    set_writable(true);
    on_drained_();
  }
  /// As the server does when a client goes.
  void Leave() {
    const std::function<void()> on_gone = std::exchange(on_gone_, nullptr);
    const std::function<void()> on_drained = std::exchange(on_drained_, nullptr);
    on_gone();
  }
  void DropEvents() {
    on_gone_ = nullptr;
    on_drained_ = nullptr;
  }

  bool answered() const {
    MutexLock lock(&mu_);
    return finished_ || response_.has_value();
  }
  std::optional<HttpResponse> response() const {
    MutexLock lock(&mu_);
    return response_;
  }
  std::string written() const {
    MutexLock lock(&mu_);
    return written_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool writable_ ABSL_GUARDED_BY(mu_) = true;
  bool streaming_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::string written_ ABSL_GUARDED_BY(mu_);
  std::optional<HttpResponse> response_ ABSL_GUARDED_BY(mu_);
  std::function<void()> on_gone_;  // by the test's thread
  std::function<void()> on_drained_;
};

PipelineDriver::Options DriverOptions() {
  PipelineDriver::Options options;
  options.vocab_size = 2048;
  options.context_tokens = 256;
  options.prefill_chunk = 8;
  return options;
}

FakePipeline::Options PipelineOptions() {
  FakePipeline::Options options;
  options.kv_blocks = 256;
  options.model.vocab_size = 2048;
  return options;
}

class GenerationSessionTest : public ::testing::Test {
 protected:
  GenerationSessionTest() : pipeline_(PipelineOptions()), driver_(DriverOptions()) {
    driver_.Attach(pipeline_.Connect());
  }
  ~GenerationSessionTest() override {
    responder_->DropEvents();
    responder_.reset();
    driver_.Shutdown();
  }

  void Start(json fields) {
    // The end of sentence would end it who knows where.
    fields.update({{"ignore_eos", true}, {"temperature", 0}});
    auto generation =
        Generation::Create(GenerationApi::kCompletion, CompletionBody(fields), TinyModel());
    ASSERT_TRUE(generation.ok()) << generation.status();
    std::vector<std::unique_ptr<JobHandle>> jobs;
    for (const JobSpec& spec : (*generation)->TakeSpecs()) {
      jobs.push_back(MustSubmit(&driver_, spec));
    }
    GenerationSession::Start(responder_, *std::move(generation), std::move(jobs));
    responder_->RunOne();  // it listens
  }

  void DeliverOne() { ASSERT_TRUE(pipeline_.Deliver(&driver_, pipeline_.Take()).ok()); }
  /// Steps of the only job, until it has ended.
  void DeliverAll() {
    while (!driver_.List().empty()) DeliverOne();
  }
  /// As many events with text as were written.
  int NumChunks() const {
    int chunks = 0;
    const std::string written = responder_->written();
    for (size_t at = 0; (at = written.find("data: {", at)) != std::string::npos; ++at) ++chunks;
    return chunks;
  }

  FakePipeline pipeline_;
  PipelineDriver driver_;
  std::shared_ptr<TestResponder> responder_ = std::make_shared<TestResponder>();
};

TEST_F(GenerationSessionTest, AnswersOnceAllChoicesAreThere) {
  Start({{"max_tokens", 3}, {"n", 2}});
  DeliverAll();
  responder_->RunUntilAnswered();
  const std::optional<HttpResponse> response = responder_->response();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->status, 200);
  EXPECT_EQ(json::parse(response->body)["usage"]["completion_tokens"], 6);
}

TEST_F(GenerationSessionTest, StreamsEachTokenAsItComes) {
  Start({{"max_tokens", 3}, {"stream", true}, {"logprobs", 0}});
  for (int token = 1; token <= 3; ++token) {
    DeliverOne();
    responder_->RunOne();
    EXPECT_EQ(NumChunks(), token < 3 ? token : 4);  // and one that says "length"
  }
  responder_->RunUntilAnswered();
  EXPECT_THAT(responder_->written(),
              ::testing::AllOf(StartsWith("data: {"), EndsWith("}\n\ndata: [DONE]\n\n")));
}

TEST_F(GenerationSessionTest, ASlowReaderIsWrittenToOnceItHasRead) {
  Start({{"max_tokens", 50}, {"stream", true}, {"logprobs", 0}});
  DeliverOne();
  responder_->RunOne();
  EXPECT_EQ(NumChunks(), 1);
  responder_->set_writable(false);
  // The job goes on, for it costs the others nothing to keep its tokens.
  DeliverAll();
  responder_->RunOne();
  EXPECT_EQ(NumChunks(), 1);
  responder_->Drain();
  EXPECT_TRUE(responder_->answered());
  EXPECT_GT(NumChunks(), 1);
  EXPECT_THAT(responder_->written(), EndsWith("data: [DONE]\n\n"));
}

TEST_F(GenerationSessionTest, WhenTheClientGoesSoDoTheJobs) {
  for (const bool stream : {true, false}) {
    responder_ = std::make_shared<TestResponder>();
    Start({{"max_tokens", 100}, {"stream", stream}, {"n", 3}});
    DeliverOne();
    EXPECT_EQ(driver_.List().size(), 3u);
    responder_->Leave();
    while (!driver_.List().empty()) responder_->RunOne();  // news may keep it yet
    Drain(&driver_, &pipeline_);
    EXPECT_FALSE(responder_->answered());
  }
}

TEST_F(GenerationSessionTest, AStopStringFreesItsJobAtOnce) {
  // What the model will say, to know where to stop it.
  JobSpec spec = (*Generation::Create(GenerationApi::kCompletion,
                                      CompletionBody({{"max_tokens", 40}}), TinyModel()))
                     ->TakeSpecs()[0];
  spec.sampling.set_temperature(0);
  spec.stop_token_ids.clear();
  const std::vector<int32_t> reply = PipelineOptions().model.Reply(spec);
  std::string text;
  size_t words = 0;  // tokens up to the first whose text can be looked for
  while (text.find_first_of("etaoin") == std::string::npos) {
    ASSERT_LT(words, 30u);
    text = *TinyText().tokenizer().Decode(absl::MakeConstSpan(reply).first(++words));
  }
  const std::string stop = text.substr(text.find_first_of("etaoin"), 1);
  Start({{"max_tokens", 200}, {"stop", stop}});
  while (!responder_->answered()) {
    DeliverOne();
    responder_->RunOne();
  }
  EXPECT_EQ(driver_.List().size(), 0u);
  const json body = json::parse(responder_->response()->body);
  EXPECT_EQ(body["choices"][0]["text"], text.substr(0, text.find(stop)));
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(body["usage"]["completion_tokens"], words);
  Drain(&driver_, &pipeline_);
}

TEST_F(GenerationSessionTest, AFailureIsTheAnswer) {
  Start({{"max_tokens", 100}, {"n", 2}});
  DeliverOne();
  driver_.Shutdown();
  responder_->RunUntilAnswered();
  const std::optional<HttpResponse> response = responder_->response();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->status, 503);
  EXPECT_EQ(json::parse(response->body)["error"]["message"], "the coordinator is shutting down");
}

TEST_F(GenerationSessionTest, AFailureInAStreamIsItsLastEvent) {
  Start({{"max_tokens", 100}, {"stream", true}, {"logprobs", 0}});
  DeliverOne();
  responder_->RunOne();
  driver_.Shutdown();
  responder_->RunUntilAnswered();
  const std::string written = responder_->written();
  EXPECT_EQ(NumChunks(), 2);  // what was generated comes before
  EXPECT_THAT(written.substr(written.rfind("data: ")),
              ::testing::AllOf(StartsWith("data: {\"error\":"),
                               HasSubstr("the coordinator is shutting down"), EndsWith("}\n\n")));
  EXPECT_THAT(written, Not(HasSubstr("[DONE]")));
}

TEST_F(GenerationSessionTest, OneFailedChoiceEndsTheOthers) {
  Start({{"max_tokens", 100}, {"n", 3}});
  DeliverOne();
  ASSERT_TRUE(driver_.Cancel(driver_.List()[1].job_id()).ok());
  responder_->RunUntilAnswered();
  // Not 5xx: a client would ask again for what somebody cancelled.
  EXPECT_EQ(responder_->response()->status, 499);
  EXPECT_EQ(driver_.List().size(), 0u);
  Drain(&driver_, &pipeline_);
}

TEST_F(GenerationSessionTest, AClientThatIsGoneBeforeItListensCostsNothing) {
  auto generation = Generation::Create(GenerationApi::kCompletion,
                                       CompletionBody({{"max_tokens", 100}}), TinyModel());
  ASSERT_TRUE(generation.ok()) << generation.status();
  std::vector<std::unique_ptr<JobHandle>> jobs;
  jobs.push_back(MustSubmit(&driver_, (*generation)->TakeSpecs()[0]));
  GenerationSession::Start(responder_, *std::move(generation), std::move(jobs));
  responder_->Leave();
  responder_->RunOne();
  EXPECT_EQ(driver_.List().size(), 0u);
  Drain(&driver_, &pipeline_);
}

}  // namespace
}  // namespace caravan
