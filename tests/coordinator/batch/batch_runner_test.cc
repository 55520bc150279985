// The runner with a real store and driver, on a pipeline that is a fake.

#include "coordinator/batch/batch_runner.h"

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/driver_testing.h"
#include "tests/coordinator/openai/openai_testing.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;

constexpr absl::Duration kDeadline = absl::Seconds(60);

FakePipeline::Options PipelineOptions(uint64_t plan_version) {
  FakePipeline::Options options;
  options.plan_version = plan_version;
  options.kv_blocks = 1024;
  options.model.vocab_size = 2048;
  return options;
}

PipelineDriver::Options DriverOptions() {
  PipelineDriver::Options options;
  options.vocab_size = 2048;
  options.context_tokens = 256;
  return options;
}

/// A driver with a runner, which may end before the store does.
class Life {
 public:
  Life(JobStore* store, BatchBook* book, int64_t max_jobs = 256,
       const PipelineDriver::Options& driver_options = DriverOptions())
      : driver_(driver_options) {
    BatchRunner::Options options;
    options.store = store;
    options.book = book;
    options.driver = &driver_;
    options.model = TinyModel();
    options.max_jobs = max_jobs;
    options.record_interval = absl::Milliseconds(1);
    runner_.emplace(std::move(options));
  }
  ~Life() {
    player_.reset();
    runner_.reset();
  }

  /// Attaches a new pipeline. Without `plays` the test delivers its steps.
  FakePipeline& Attach(bool plays = true) {
    FakePipeline& pipeline =
        *pipelines_.emplace_back(std::make_unique<FakePipeline>(PipelineOptions(++plan_version_)));
    driver_.Attach(pipeline.Connect());
    if (plays) player_.emplace(&pipeline, &driver_);
    return pipeline;
  }
  void Deliver(FakePipeline& pipeline, int steps) {
    for (int i = 0; i < steps; ++i) {
      ASSERT_TRUE(pipeline.Deliver(&driver_, pipeline.Take()).ok());
    }
  }
  PipelineDriver& driver() { return driver_; }
  void StopRunner() { runner_->Stop(); }

 private:
  std::vector<std::unique_ptr<FakePipeline>> pipelines_;
  uint64_t plan_version_ = 0;
  PipelineDriver driver_;
  std::optional<FakePipeline::Player> player_;
  std::optional<BatchRunner> runner_;
};

class BatchRunnerTest : public ::testing::Test {
 protected:
  BatchRunnerTest() : store_(*JobStore::Open(dir_.File("a.db"))), book_(store_.get()) {}

  /// A batch of a line "line-1", "line-2", ... for each body.
  Batch Submit(const std::vector<json>& bodies) {
    std::string content;
    for (size_t i = 0; i < bodies.size(); ++i) {
      absl::StrAppend(&content,
                      json{{"custom_id", absl::StrCat("line-", i + 1)},
                           {"method", "POST"},
                           {"url", "/v1/completions"},
                           {"body", bodies[i]}}
                          .dump(),
                      "\n");
    }
    const auto file = book_.AddFile({"in.jsonl"}, content);
    EXPECT_TRUE(file.ok()) << file.status();
    const auto batch = book_.CreateBatch({file->id, "/v1/completions", {}});
    EXPECT_TRUE(batch.ok()) << batch.status();
    return *batch;
  }

  /// Waits for a state of the batch.
  Batch WaitFor(const Batch& batch, const std::function<bool(const Batch&)>& wanted) {
    const absl::Duration deadline = SteadyClock().Now() + kDeadline;
    auto now = book_.GetBatch(batch.id);
    while (now.ok() && !wanted(*now) && SteadyClock().Now() < deadline) {
      if (HasEnded(now->status)) break;
      now = book_.WaitForChange(batch.id, now->version, deadline - SteadyClock().Now());
    }
    EXPECT_TRUE(now.ok()) << now.status();
    EXPECT_TRUE(wanted(*now)) << BatchStatusName(now->status);
    return *now;
  }
  Batch WaitForEnd(const Batch& batch) {
    return WaitFor(batch, [](const Batch& now) { return HasEnded(now.status); });
  }

  std::vector<json> Lines(const std::optional<std::string>& file_id) {
    std::vector<json> lines;
    if (!file_id.has_value()) return lines;
    const auto content = book_.FileContent(*file_id);
    EXPECT_TRUE(content.ok()) << content.status();
    for (absl::string_view line : absl::StrSplit(*content, '\n', absl::SkipEmpty())) {
      lines.push_back(json::parse(line));
    }
    return lines;
  }

  /// The lines of a batch that is in progress, as they were stored.
  std::vector<BatchLine> StoredLines(int64_t batch = 1) {
    std::vector<BatchLine> lines;
    while (true) {
      const auto line = store_->NextLine(batch, lines.empty() ? 0 : lines.back().number);
      EXPECT_TRUE(line.ok()) << line.status();
      if (!line.ok() || !line->has_value()) return lines;
      lines.push_back(**line);
    }
  }

  /// What the line must come to, worked out alone. Without what depends on the run: the time, and
  /// what the KV cache held.
  static json Expected(const BatchLine& line) {
    auto running =
        RunningLine::Create({1, line.number}, line, GenerationApi::kCompletion, TinyModel(), {});
    EXPECT_TRUE(running.ok()) << running.status();
    const ToyModel model = PipelineOptions(1).model;
    for (size_t i = 0; i < (*running)->num_choices(); ++i) {
      JobSpec spec = (*running)->NextJob(i);
      spec.max_new_tokens =
          std::min<int64_t>(spec.max_new_tokens, 256 - static_cast<int64_t>(spec.prompt.size()));
      JobUpdate update;
      if (spec.score_prompt) update.prompt_scores = model.PromptScores(spec);
      std::vector<int32_t> tokens = spec.prompt;
      for (const int32_t id : model.Reply(spec)) {
        update.tokens.push_back(model.Next(tokens, spec.sampling));
        tokens.push_back(id);
      }
      update.finished = true;
      const bool stopped =
          !update.tokens.empty() && tokens.back() == kEos && !spec.stop_token_ids.empty();
      update.reason = stopped ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH;
      EXPECT_TRUE((*running)->Push(i, update));
    }
    return WithoutRun((*running)->Response());
  }
  static json WithoutRun(json reply) {
    reply.erase("created");
    reply["usage"].erase("prompt_tokens_details");
    return reply;
  }
  void ExpectReplies(const Batch& batch, const std::vector<json>& expected) {
    EXPECT_EQ(batch.status, BatchStatus::kCompleted);
    EXPECT_EQ(batch.counts.completed, static_cast<int64_t>(expected.size()));
    const std::vector<json> lines = Lines(batch.output_file_id);
    ASSERT_EQ(lines.size(), expected.size());
    for (size_t i = 0; i < lines.size(); ++i) {
      EXPECT_EQ(lines[i]["custom_id"], absl::StrCat("line-", i + 1));
      EXPECT_TRUE(lines[i]["error"].is_null());
      EXPECT_EQ(lines[i]["response"]["status_code"], 200);
      EXPECT_EQ(WithoutRun(lines[i]["response"]["body"]), expected[i]);
    }
  }
  std::vector<json> ExpectedOf(const std::vector<BatchLine>& lines) {
    std::vector<json> expected;
    for (const BatchLine& line : lines) expected.push_back(Expected(line));
    return expected;
  }
  /// Waits until the batch is begun and read.
  std::vector<BatchLine> WaitForLines(const Batch& batch) {
    WaitFor(batch, [](const Batch& now) { return now.status != BatchStatus::kValidating; });
    return StoredLines();
  }
  /// Polls until the driver has as many jobs, or the batch needs none any more.
  void WaitForJobs(Life& life, size_t num_jobs) {
    const absl::Duration deadline = SteadyClock().Now() + kDeadline;
    while (life.driver().List().size() < num_jobs && !store_->OpenBatches()->empty()) {
      ASSERT_LT(SteadyClock().Now(), deadline);
      std::this_thread::yield();
    }
  }
  int64_t RecordedTokens(int64_t line) {
    int64_t tokens = 0;
    const auto growth = store_->ReadGrowth({1, line});
    EXPECT_TRUE(growth.ok()) << growth.status();
    for (const LineGrowth& each : *growth) tokens += each.growth.tokens_size();
    return tokens;
  }
  /// Polls: what the runner has on disk shows by nothing else.
  void WaitForRecorded(int64_t line, int64_t tokens) {
    const absl::Duration deadline = SteadyClock().Now() + kDeadline;
    while (RecordedTokens(line) < tokens && SteadyClock().Now() < deadline) {
      std::this_thread::yield();
    }
    EXPECT_EQ(RecordedTokens(line), tokens);
  }

  const TempDir dir_;
  const std::unique_ptr<JobStore> store_;
  BatchBook book_;
};

/// Of a line that ends when it is to: the toy model draws an end now and then.
json Body(const std::string& prompt, const json& more = json::object()) {
  json body = {{"prompt", prompt}, {"max_tokens", 12}, {"ignore_eos", true}};
  body.update(more);
  return body;
}

TEST_F(BatchRunnerTest, RunsEveryLineAndKeepsTheirOrder) {
  Life life(store_.get(), &book_);
  const Batch batch =
      Submit({Body("a", {{"max_tokens", 40}}), Body("b", {{"n", 3}}),
              Body("c", {{"temperature", 1}, {"ignore_eos", false}}), Body("d", {{"logprobs", 2}}),
              Body("e", {{"echo", true}, {"logprobs", 0}}), Body("f", {{"max_tokens", 0}}),
              Body("g", {{"max_tokens", 1}})});
  const std::vector<json> expected = ExpectedOf(WaitForLines(batch));
  ASSERT_THAT(expected, SizeIs(7));
  life.Attach();
  const Batch ended = WaitForEnd(batch);
  ExpectReplies(ended, expected);
  EXPECT_EQ(ended.counts.failed, 0);
  EXPECT_EQ(ended.error_file_id, std::nullopt);
  EXPECT_GE(*ended.completed_at, *ended.in_progress_at);
}

TEST_F(BatchRunnerTest, ALineThatCannotBeRunStopsNoOther) {
  Life life(store_.get(), &book_);
  life.Attach();
  const Batch batch = WaitForEnd(
      Submit({Body("a"), Body("b", {{"n", 0}}), Body("c", {{"model", "other"}}), Body("d")}));
  EXPECT_EQ(batch.status, BatchStatus::kCompleted);
  EXPECT_EQ(batch.counts.completed, 2);
  EXPECT_EQ(batch.counts.failed, 2);
  EXPECT_THAT(Lines(batch.output_file_id), SizeIs(2));
  const std::vector<json> errors = Lines(batch.error_file_id);
  ASSERT_THAT(errors, SizeIs(2));
  EXPECT_EQ(errors[0]["custom_id"], "line-2");
  EXPECT_EQ(errors[0]["response"]["status_code"], 400);
  EXPECT_EQ(errors[0]["response"]["body"]["error"]["param"], "n");
  EXPECT_EQ(errors[1]["custom_id"], "line-3");
  EXPECT_EQ(errors[1]["response"]["status_code"], 404);
}

TEST_F(BatchRunnerTest, MoreLinesThanResultsThatMayWait) {
  Life life(store_.get(), &book_);
  life.Attach();
  const std::vector<json> bodies(1500, Body("a", {{"n", 0}}));
  EXPECT_EQ(WaitForEnd(Submit(bodies)).counts.failed, 1500);
}

TEST_F(BatchRunnerTest, AFileThatIsWrongFailsItsBatchAlone) {
  Life life(store_.get(), &book_);
  life.Attach();
  const auto file = book_.AddFile({"in.jsonl"}, "nonsense\n");
  const auto batch = book_.CreateBatch({file->id, "/v1/completions", {}});
  const Batch other = Submit({Body("a")});
  EXPECT_EQ(WaitForEnd(*batch).errors[0].line, 1);
  EXPECT_EQ(WaitForEnd(other).status, BatchStatus::kCompleted);
}

TEST_F(BatchRunnerTest, GoesOnAfterARestartFromTheTokensThatItHad) {
  std::vector<json> expected;
  Batch batch;
  int64_t total = 0;
  int64_t recorded = 0;
  {
    Life life(store_.get(), &book_);
    batch = Submit({Body("first line", {{"max_tokens", 40}, {"temperature", 1}}),
                    Body("second line", {{"max_tokens", 40}, {"n", 2}, {"logprobs", 3}})});
    expected = ExpectedOf(WaitForLines(batch));
    for (const json& reply : expected) {
      total += reply["usage"]["completion_tokens"].get<int64_t>();
    }
    FakePipeline& pipeline = life.Attach(/*plays=*/false);
    WaitForJobs(life, 3);
    // The prompts, then a token each a step.
    life.Deliver(pipeline, 20);
    life.StopRunner();  // records what came
    recorded = RecordedTokens(1) + RecordedTokens(2);
    EXPECT_GT(recorded, 3);
    EXPECT_LT(recorded, total);
    EXPECT_TRUE(life.driver().List().empty());
  }
  Life life(store_.get(), &book_);
  life.Attach();
  ExpectReplies(WaitForEnd(batch), expected);
  EXPECT_EQ(life.driver().stats().generated_tokens, total - recorded);
}

TEST_F(BatchRunnerTest, WhatIsGeneratedIsRecordedWhileItRuns) {
  Life life(store_.get(), &book_);
  const Batch batch = Submit({Body("a", {{"max_tokens", 40}})});
  WaitForLines(batch);
  FakePipeline& pipeline = life.Attach(/*plays=*/false);
  life.Deliver(pipeline, 6);
  WaitForRecorded(1, 6);
}

TEST_F(BatchRunnerTest, GoesOnAfterTheLossOfAWorker) {
  Life life(store_.get(), &book_);
  const Batch batch = Submit({Body("a", {{"max_tokens", 40}}), Body("b", {{"max_tokens", 40}}),
                              Body("c", {{"echo", true}, {"logprobs", 1}})});
  const std::vector<json> expected = ExpectedOf(WaitForLines(batch));
  FakePipeline& pipeline = life.Attach(/*plays=*/false);
  WaitForJobs(life, 3);
  life.Deliver(pipeline, 8);
  life.driver().Detach(absl::UnavailableError("a worker is lost"));
  life.Attach();
  const Batch ended = WaitForEnd(batch);
  ExpectReplies(ended, expected);
  EXPECT_EQ(ended.counts.failed, 0);
}

TEST_F(BatchRunnerTest, ALineWhoseJobLosesOnePipelineAfterTheOtherIsBegunAgain) {
  Life life(store_.get(), &book_);
  const Batch batch = Submit({Body("a", {{"max_tokens", 4}})});
  const std::vector<json> expected = ExpectedOf(WaitForLines(batch));
  for (int i = 0; i < kMostInterruptions; ++i) {
    life.Attach(/*plays=*/false).Take();
    life.driver().Detach(absl::UnavailableError("a worker is lost"));
  }
  life.Attach();
  ExpectReplies(WaitForEnd(batch), expected);
}

TEST_F(BatchRunnerTest, ALineWhoseJobFailsHasFailed) {
  Life life(store_.get(), &book_);
  const Batch batch = Submit({Body("a", {{"n", 2}}), Body("b")});
  WaitForLines(batch);
  FakePipeline& pipeline = life.Attach(/*plays=*/false);
  WaitForJobs(life, 3);
  // The first step holds the first line's first job, and maybe more.
  v1::Step step = pipeline.Take();
  const int64_t hit = step.slices_size();
  step.clear_results();
  step.mutable_error()->set_code(3);  // INVALID_ARGUMENT
  step.mutable_error()->set_message("stage 0: out of luck");
  ASSERT_TRUE(pipeline.Deliver(&life.driver(), std::move(step)).ok());
  FakePipeline::Player player(&pipeline, &life.driver());
  const Batch ended = WaitForEnd(batch);
  EXPECT_EQ(ended.counts.failed, hit > 2 ? 2 : 1);
  const json error = Lines(ended.error_file_id)[0];
  EXPECT_EQ(error["custom_id"], "line-1");
  EXPECT_EQ(error["response"]["status_code"], 400);
  EXPECT_THAT(error["response"]["body"]["error"]["message"].get<std::string>(),
              HasSubstr("out of luck"));
}

TEST_F(BatchRunnerTest, AJobThatSomebodyCancelsEndsItsLine) {
  Life life(store_.get(), &book_);
  const Batch batch = Submit({Body("a")});
  WaitForLines(batch);
  life.Attach(/*plays=*/false);
  WaitForJobs(life, 1);
  ASSERT_TRUE(life.driver().Cancel(life.driver().List()[0].job_id()).ok());
  const Batch ended = WaitForEnd(batch);
  const json error = Lines(ended.error_file_id)[0];
  EXPECT_TRUE(error["response"].is_null());
  EXPECT_EQ(error["error"]["code"], "request_cancelled");
}

TEST_F(BatchRunnerTest, ACancelledBatchGivesItsJobsBackAndKeepsWhatWasDone) {
  Life life(store_.get(), &book_, /*max_jobs=*/2);
  std::vector<json> bodies(9, Body("a", {{"max_tokens", 100}}));
  bodies.insert(bodies.begin(), Body("b", {{"max_tokens", 1}}));
  const Batch batch = Submit(bodies);
  WaitForLines(batch);
  FakePipeline& pipeline = life.Attach(/*plays=*/false);
  WaitForJobs(life, 2);
  life.Deliver(pipeline, 1);  // all that the first line asks for
  WaitFor(batch, [](const Batch& now) { return now.counts.completed == 1; });
  EXPECT_TRUE(book_.CancelBatch(batch.id).ok());
  const Batch ended = WaitForEnd(batch);
  EXPECT_EQ(ended.status, BatchStatus::kCancelled);
  EXPECT_EQ(ended.counts.completed, 1);
  EXPECT_EQ(ended.counts.failed, 9);
  EXPECT_THAT(Lines(ended.output_file_id), SizeIs(1));
  for (const json& line : Lines(ended.error_file_id)) {
    EXPECT_EQ(line["error"]["code"], "batch_cancelled");
  }
  EXPECT_TRUE(life.driver().List().empty());
  EXPECT_EQ(book_.CancelBatch(batch.id)->status, BatchStatus::kCancelled);
}

TEST_F(BatchRunnerTest, ABatchIsCancelledWithoutAPipelineToo) {
  Life life(store_.get(), &book_);
  const Batch batch = Submit({Body("a")});
  WaitForLines(batch);
  ASSERT_TRUE(book_.CancelBatch(batch.id).ok());
  EXPECT_EQ(WaitForEnd(batch).counts.failed, 1);
}

TEST_F(BatchRunnerTest, TakesNoMoreOfTheQueueThanItMay) {
  Life life(store_.get(), &book_, /*max_jobs=*/3);
  const Batch batch = Submit({Body("a", {{"n", 5}}), Body("b"), Body("c")});
  const std::vector<json> expected = ExpectedOf(WaitForLines(batch));
  FakePipeline& pipeline = life.Attach(/*plays=*/false);
  std::vector<size_t> jobs;
  while (!HasEnded(book_.GetBatch(batch.id)->status)) {
    WaitForJobs(life, 1);
    jobs.push_back(life.driver().List().size());
    if (life.driver().List().empty()) break;
    life.Deliver(pipeline, 1);
  }
  EXPECT_THAT(jobs, Each(Le(3u)));
  ExpectReplies(WaitForEnd(batch), expected);
}

TEST_F(BatchRunnerTest, WaitsWhereOthersFillTheQueue) {
  PipelineDriver::Options options = DriverOptions();
  options.max_queued_jobs = 1;
  Life life(store_.get(), &book_, 256, options);
  const Batch batch = Submit(std::vector<json>(6, Body("a")));
  const std::vector<json> expected = ExpectedOf(WaitForLines(batch));
  const auto waiting = MustSubmit(&life.driver(), ToyJob(3, 4));
  life.Attach();
  ExpectReplies(WaitForEnd(batch), expected);
  EXPECT_TRUE(ReadToEnd(waiting.get()).status.ok());
}

TEST_F(BatchRunnerTest, OldBatchesGoFirst) {
  Life life(store_.get(), &book_, /*max_jobs=*/1);
  const Batch older = Submit(std::vector<json>(3, Body("a")));
  const Batch newer = Submit(std::vector<json>(3, Body("b")));
  WaitForLines(older);
  WaitForLines(newer);
  life.Attach();
  WaitForEnd(newer);
  EXPECT_EQ(book_.GetBatch(older.id)->status, BatchStatus::kCompleted);
}

}  // namespace
}  // namespace caravan
