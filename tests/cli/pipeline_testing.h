#ifndef CARAVAN_TESTS_CLI_PIPELINE_TESTING_H_
#define CARAVAN_TESTS_CLI_PIPELINE_TESTING_H_

// A whole pipeline in the test's process, asked for what other implementations gave.

#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "cli/local_pipeline.h"
#include "gtest/gtest.h"
#include "tests/support/golden.h"
#include "tests/support/golden_replies.h"

namespace caravan {

inline std::unique_ptr<LocalPipeline> MustCreate(const Checkpoint& checkpoint,
                                                 const LocalPipeline::Options& options) {
  absl::StatusOr<std::unique_ptr<LocalPipeline>> pipeline =
      LocalPipeline::Create(checkpoint, options);
  CARAVAN_CHECK(pipeline.ok());
  return *std::move(pipeline);
}

/// Scores each of `prompts`, one after the other.
inline std::vector<std::vector<float>> ScoreAll(const Checkpoint& checkpoint,
                                                const LocalPipeline::Options& options,
                                                const std::vector<std::vector<int32_t>>& prompts) {
  const std::unique_ptr<LocalPipeline> pipeline = MustCreate(checkpoint, options);
  std::vector<std::vector<float>> logits;
  for (const std::vector<int32_t>& prompt : prompts) {
    absl::StatusOr<std::vector<float>> scored = ScorePrompt(pipeline->driver(), prompt);
    EXPECT_TRUE(scored.ok()) << scored.status().ToString();
    logits.push_back(scored.ok() ? *std::move(scored) : std::vector<float>());
  }
  return logits;
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline JobSpec MakeJob(const Checkpoint& checkpoint, const std::vector<int32_t>& prompt) {
  JobSpec spec;
  spec.prompt = prompt;
  spec.max_new_tokens = 128;
  spec.stop_token_ids = checkpoint.config().eos_token_ids;
  return spec;
}

/// Asks for all of `golden`, `at_once` at a time.
inline void ExpectGoldenReplies(const Checkpoint& checkpoint,
                                const std::vector<GoldenReply>& golden, size_t at_once,
                                PipelineDriver& driver) {
  std::deque<std::unique_ptr<JobHandle>> jobs;  // of golden[i] and those behind it
  size_t submitted = 0;
  for (size_t i = 0; i < golden.size(); ++i) {
    while (submitted < golden.size() && jobs.size() < at_once) {
      auto job = driver.Submit(MakeJob(checkpoint, golden[submitted++].prompt));
      ASSERT_TRUE(job.ok()) << job.status().ToString();
      jobs.push_back(*std::move(job));
    }
    const absl::StatusOr<std::vector<int32_t>> reply = ReadReply(*jobs.front());
    ASSERT_TRUE(reply.ok()) << reply.status().ToString();
    EXPECT_EQ(*reply, golden[i].reply) << "line " << i + 1 << ", " << at_once << " at once";
    jobs.pop_front();
  }
}

/// Every list of `model`'s golden file, in each chunking over each number of workers: within the
/// tolerance, and the same bits.
inline void ExpectGoldenLogits(const GoldenModel& model, int num_lists,
                               const LocalPipeline::Options& base, double tolerance) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(model.directory);
  const std::unique_ptr<SafetensorsFile> golden = MustOpenGolden(model.golden);
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::vector<float>> expected;
  for (int i = 0; i < num_lists; ++i) {
    prompts.push_back(GoldenValues<int32_t>(*golden, absl::StrCat("ids_", i)));
    expected.push_back(GoldenValues<float>(*golden, absl::StrCat("logits_", i)));
  }
  std::vector<std::vector<float>> first;
  for (const int workers : {1, 2, 3}) {
    for (const int64_t chunk : {int64_t{2048}, int64_t{7}, int64_t{1}}) {
      SCOPED_TRACE(absl::StrCat(workers, " workers, chunks of ", chunk));
      LocalPipeline::Options options = base;
      options.num_workers = workers;
      options.prefill_chunk = chunk;
      const std::vector<std::vector<float>> logits = ScoreAll(*checkpoint, options, prompts);
      if (first.empty()) first = logits;
      for (size_t i = 0; i < prompts.size(); ++i) {
        EXPECT_LE(RelativeError(logits[i], expected[i]), tolerance) << "list " << i;
        EXPECT_TRUE(SameBits(logits[i], first[i])) << "list " << i;
      }
    }
  }
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_CLI_PIPELINE_TESTING_H_
