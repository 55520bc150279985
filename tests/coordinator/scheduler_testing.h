#ifndef CARAVAN_TESTS_COORDINATOR_SCHEDULER_TESTING_H_
#define CARAVAN_TESTS_COORDINATOR_SCHEDULER_TESTING_H_

// What the tests of Scheduler share.

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "coordinator/scheduler.h"
#include "gtest/gtest.h"
#include "tests/coordinator/fake_pipeline.h"
#include "tests/coordinator/toy_model.h"

namespace caravan {

inline Scheduler::Options SmallOptions() {
  Scheduler::Options options;
  options.plan_version = 3;
  options.num_stages = 1;
  options.kv_blocks = 64;
  options.kv_block_tokens = 4;
  options.max_step_tokens = 16;
  options.prefill_chunk = 8;
  options.vocab_size = 97;
  return options;
}

/// A scheduler with its sequences, and workers that hold it to the protocol.
class Bench {
 public:
  explicit Bench(const Scheduler::Options& options) : Bench(options, FakePipeline::Drafts::kNone) {}
  /// The workers draft.
  Bench(Scheduler::Options options, FakePipeline::Drafts drafts, int num_drafts = 1)
      : scheduler_(WithDrafts(options, drafts)),
        workers_(WorkersFor(options, drafts, num_drafts)) {}

  Sequence* Add(const JobSpec& spec) {
    // One a second.
    const uint64_t id = sequences_.size() + 1;
    sequences_.push_back(std::make_unique<Sequence>(id, spec, absl::Seconds(id)));
    scheduler_.Enqueue(sequences_.back().get());
    return sequences_.back().get();
  }

  void Cancel(Sequence* sequence) { scheduler_.Cancel(sequence); }

  /// The next step, answered; fails the test if none is due.
  v1::Step Next(bool admit = true) {
    auto step = scheduler_.NextStep(admit);
    EXPECT_TRUE(step.has_value());
    return step.has_value() ? workers_.Answer(*std::move(step)) : v1::Step();
  }

  bool NothingDue() { return !scheduler_.NextStep(true).has_value(); }

  void Home(const v1::Step& step, absl::Duration round_trip = absl::Milliseconds(1)) {
    workers_.MarkHome();
    ASSERT_TRUE(scheduler_.TakeIn(step, round_trip).ok());
    scheduler_.blocks().CheckInvariants();
  }

  /// Steps until nothing is left to do.
  void Drain() {
    while (auto step = scheduler_.NextStep(true)) Home(workers_.Answer(*std::move(step)));
  }

  Scheduler& scheduler() { return scheduler_; }
  FakePipeline& workers() { return workers_; }

 private:
  static Scheduler::Options WithDrafts(Scheduler::Options options, FakePipeline::Drafts drafts) {
    options.drafts = drafts != FakePipeline::Drafts::kNone;
    return options;
  }
  static FakePipeline::Options WorkersFor(const Scheduler::Options& options,
                                          FakePipeline::Drafts drafts, int num_drafts) {
    FakePipeline::Options workers;
    workers.plan_version = options.plan_version;
    workers.num_stages = options.num_stages;
    workers.kv_blocks = options.kv_blocks;
    workers.kv_block_tokens = options.kv_block_tokens;
    workers.max_step_tokens = options.max_step_tokens;
    workers.model.vocab_size = options.vocab_size;
    workers.drafts = drafts;
    workers.num_drafts = num_drafts;
    return workers;
  }

  Scheduler scheduler_;
  FakePipeline workers_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

inline std::vector<int> Rows(const v1::Step& step) {
  std::vector<int> rows;
  for (const v1::SequenceSlice& slice : step.slices()) rows.push_back(slice.token_ids_size());
  return rows;
}

inline std::vector<uint64_t> Ids(const v1::Step& step) {
  std::vector<uint64_t> ids;
  for (const v1::SequenceSlice& slice : step.slices()) ids.push_back(slice.sequence_id());
  return ids;
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_COORDINATOR_SCHEDULER_TESTING_H_
