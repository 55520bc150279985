#ifndef CARAVAN_TESTS_COORDINATOR_DRIVER_TESTING_H_
#define CARAVAN_TESTS_COORDINATOR_DRIVER_TESTING_H_

// What the tests of PipelineDriver share.

#include <cstdint>
#include <memory>
#include <vector>

#include "coordinator/pipeline_driver.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_pipeline.h"
#include "tests/coordinator/toy_model.h"

namespace caravan {

inline constexpr ToyModel kModel;

inline PipelineDriver::Options SmallDriver() {
  PipelineDriver::Options options;
  options.vocab_size = kModel.vocab_size;
  options.context_tokens = 64;
  options.prefill_chunk = 8;
  return options;
}

inline FakePipeline::Options Stages(int num_stages, uint64_t plan_version = 1) {
  FakePipeline::Options options;
  options.num_stages = num_stages;
  options.plan_version = plan_version;
  return options;
}

inline std::unique_ptr<JobHandle> MustSubmit(PipelineDriver* driver, const JobSpec& spec) {
  auto handle = driver->Submit(spec);
  EXPECT_TRUE(handle.ok()) << handle.status().ToString();
  return handle.ok() ? *std::move(handle) : nullptr;
}

/// What a job came to.
struct Outcome {
  absl::Status status;
  std::vector<int32_t> token_ids;
  std::vector<float> logits;
  std::vector<ScoredToken> prompt_scores;
  int64_t cached_prompt_tokens = 0;
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
};

inline Outcome ReadToEnd(JobHandle* handle) {
  Outcome outcome;
  while (true) {
    auto update = handle->Next();
    if (!update.ok()) {
      outcome.status = update.status();
      return outcome;
    }
    for (const ScoredToken& token : update->tokens) outcome.token_ids.push_back(token.token_id);
    outcome.prompt_scores.insert(outcome.prompt_scores.end(), update->prompt_scores.begin(),
                                 update->prompt_scores.end());
    outcome.cached_prompt_tokens = update->cached_prompt_tokens;
    outcome.logits.insert(outcome.logits.end(), update->logits.begin(), update->logits.end());
    if (update->finished) {
      outcome.reason = update->reason;
      return outcome;
    }
  }
}

/// Delivers steps by hand until no job is left, nor a block in use.
inline void Drain(PipelineDriver* driver, FakePipeline* workers) {
  while (!driver->Idle()) ASSERT_TRUE(workers->Deliver(driver, workers->Take()).ok());
  EXPECT_EQ(driver->stats().kv_blocks_used, 0);
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_COORDINATOR_DRIVER_TESTING_H_
