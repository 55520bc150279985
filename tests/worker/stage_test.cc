// Steps that cannot be run, and what a stage reads.

#include "worker/stage.h"

#include <memory>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "tests/support/golden.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

/// Counts who reads what of another source.
class CountingSource : public TensorSource {
 public:
  explicit CountingSource(const TensorSource& source) : source_(source) {}
  const TensorInfo* Find(absl::string_view name) const override { return source_.Find(name); }
  absl::Status Read(absl::string_view name, absl::Span<std::byte> out) const override {
    names.insert(std::string(name));
    if (name == broken) return absl::DataLossError("the disk failed");
    return source_.Read(name, out);
  }

  mutable std::set<std::string> names;
  std::string broken;

 private:
  const TensorSource& source_;
};

class StageTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Stage>> Create(
      const TensorSource& source, const StageSpec& spec,
      const StageWeights::Progress& progress = [](int64_t, int64_t) { return true; }) {
    Stage::Options options;
    options.name = "worker 2 (box-b)";
    // Two blocks of the 4 layers at most.
    options.kv_budget_bytes = 2 * 4 * 64 * checkpoint_->config().Mla().kv_width() * 4;
    options.max_step_tokens = 8;
    return Stage::Create(checkpoint_->config(), spec, source, *MakeCpuBackend({}), options,
                         progress);
  }

  static v1::Step MakeStep(uint64_t sequence, uint32_t first_position, int tokens) {
    v1::Step step;
    v1::SequenceSlice& slice = *step.add_slices();
    slice.set_sequence_id(sequence);
    slice.set_first_position(first_position);
    for (int i = 0; i < tokens; ++i) slice.add_token_ids(5);
    slice.set_output(v1::SLICE_OUTPUT_SAMPLE);
    return step;
  }

  static void ExpectError(const v1::Step& step, const std::string& says) {
    EXPECT_THAT(step.error().message(), HasSubstr("worker 2 (box-b), layers "));
    EXPECT_THAT(step.error().message(), HasSubstr(says));
    EXPECT_EQ(step.results_size(), 0);
    EXPECT_TRUE(step.activations().empty());
  }

  const std::unique_ptr<Checkpoint> checkpoint_ =
      MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
};

TEST_F(StageTest, StepsThatCannotBeRunComeBackWithTheReason) {
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  ExpectError(stage->Run(MakeStep(1, 0, 9)), "at most 8");
  ExpectError(stage->Run(MakeStep(1, 3, 1)), "sequence 1: tokens come for position 3");
  ExpectError(stage->Run(MakeStep(1, 0, 0)), "no tokens");
  v1::Step twice = MakeStep(1, 0, 1);
  *twice.add_slices() = twice.slices(0);
  ExpectError(stage->Run(twice), "two slices");
  v1::Step freed = MakeStep(2, 0, 1);
  freed.add_freed_sequence_ids(1);
  freed.mutable_slices(0)->set_token_ids(0, 320);
  ExpectError(stage->Run(freed), "token 320 is outside the vocabulary of 320");
  // After all that it still works.
  const v1::Step good = stage->Run(MakeStep(3, 0, 2));
  EXPECT_FALSE(good.has_error()) << good.error().message();
  EXPECT_EQ(good.results_size(), 1);
}

TEST_F(StageTest, ActivationsOfAWrongSizeAreRefused) {
  const auto stage = *Create(*checkpoint_, {1, 3, false, false});
  v1::Step step = MakeStep(1, 0, 2);
  step.set_activations(std::string(17, 'x'));
  ExpectError(stage->Run(step), "activations of 17 bytes");
}

TEST_F(StageTest, AFailedStepOnlyFreesAndPassesOn) {
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  const int64_t all = stage->kv_cache().free_blocks();
  ASSERT_FALSE(stage->Run(MakeStep(1, 0, 8)).has_error());
  EXPECT_LT(stage->kv_cache().free_blocks(), all);
  v1::Step failed = MakeStep(2, 0, 1);
  failed.add_freed_sequence_ids(1);
  failed.mutable_error()->set_message("stage 0 failed");
  const v1::Step passed = stage->Run(failed);
  EXPECT_EQ(passed.error().message(), "stage 0 failed");
  EXPECT_EQ(passed.results_size(), 0);
  EXPECT_EQ(stage->kv_cache().free_blocks(), all);
}

TEST_F(StageTest, RunsOutOfCacheByName) {
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  ASSERT_FALSE(stage->Run(MakeStep(1, 0, 1)).has_error());
  ASSERT_FALSE(stage->Run(MakeStep(2, 0, 1)).has_error());
  const v1::Step full = stage->Run(MakeStep(3, 0, 1));
  ExpectError(full, "KV blocks");
  EXPECT_EQ(full.error().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
}

TEST_F(StageTest, LoadsItsOwnTensorsAndNoOthers) {
  const CountingSource source(*checkpoint_);
  ASSERT_TRUE(Create(source, {2, 3, false, false}).ok());
  EXPECT_TRUE(source.names.contains("model.layers.2.mlp.experts.15.down_proj.weight"));
  EXPECT_TRUE(source.names.contains("model.layers.2.mlp.experts.15.down_proj.weight_scale_inv"));
  for (const std::string& name : source.names) {
    EXPECT_THAT(name, ::testing::StartsWith("model.layers.2."));
  }
}

TEST_F(StageTest, AReadThatFailsNamesTheTensor) {
  CountingSource source(*checkpoint_);
  source.broken = "model.layers.1.self_attn.o_proj.weight";
  const absl::Status status = Create(source, {0, 2, true, false}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(status.message(), "model.layers.1.self_attn.o_proj.weight: the disk failed");
}

TEST_F(StageTest, ProgressGrowsAndMayStopTheLoading) {
  int64_t last = -1;
  int64_t total = 0;
  ASSERT_TRUE(Create(*checkpoint_, {0, 4, true, true}, [&](int64_t done, int64_t all) {
                EXPECT_GT(done, last);
                last = done;
                total = all;
                return true;
              }).ok());
  EXPECT_EQ(last, total);
  EXPECT_EQ(
      Create(*checkpoint_, {0, 4, true, true}, [](int64_t done, int64_t) { return done == 0; })
          .status()
          .code(),
      absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace caravan
