#include "worker/step_check.h"

#include <functional>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

constexpr StepLimits kLimits = {
    .max_rows = 16, .vocab_size = 100, .max_positions = 24, .kv_blocks = 8, .block_tokens = 4};

/// Sequence 1 with tokens at positions [2, 7), in blocks 7 and 0; sequence 2 with one at position
/// 8, whose first two blocks it shares with 1.
v1::Step GoodStep() {
  v1::Step step;
  v1::SequenceSlice& first = *step.add_slices();
  first.set_sequence_id(1);
  first.set_first_position(2);
  for (uint32_t id = 95; id < 100; ++id) first.add_token_ids(id);
  first.set_output(v1::SLICE_OUTPUT_NONE);
  first.add_kv_blocks(7);
  first.add_kv_blocks(0);
  v1::SequenceSlice& second = *step.add_slices();
  second.set_sequence_id(2);
  second.set_first_position(8);
  second.add_token_ids(0);
  second.set_output(v1::SLICE_OUTPUT_SAMPLE);
  for (const uint32_t block : {7, 0, 3}) second.add_kv_blocks(block);
  v1::BlockCopy& copy = *step.add_block_copies();
  copy.set_from(7);
  copy.set_to(0);
  return step;
}

TEST(StepCheckTest, LetsGoodStepsPass) {
  EXPECT_TRUE(CheckStep(v1::Step(), kLimits).ok());
  EXPECT_TRUE(CheckStep(GoodStep(), kLimits).ok()) << CheckStep(GoodStep(), kLimits);
  EXPECT_EQ(CountRows(GoodStep()), 6);
  v1::Step longest = GoodStep();  // Up to the last position, in a table that is longer than needed.
  longest.mutable_slices(1)->set_first_position(23);
  for (const uint32_t block : {4, 5, 6, 1, 1}) longest.mutable_slices(1)->add_kv_blocks(block);
  EXPECT_TRUE(CheckStep(longest, kLimits).ok()) << CheckStep(longest, kLimits);
}

struct BadStep {
  std::string name;
  std::function<void(v1::Step& step, v1::SequenceSlice& second)> spoil;
  std::string says;
};

class BadStepTest : public ::testing::TestWithParam<BadStep> {};

TEST_P(BadStepTest, IsRefusedByName) {
  v1::Step step = GoodStep();
  GetParam().spoil(step, *step.mutable_slices(1));
  const absl::Status status = CheckStep(step, kLimits);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), GetParam().says);
}

using Slice = v1::SequenceSlice;

INSTANTIATE_TEST_SUITE_P(
    StepCheck, BadStepTest,
    ::testing::Values(
        BadStep{"TooManyRows",
                [](v1::Step&, Slice& s) {
                  for (int i = 0; i < 11; ++i) s.add_token_ids(1);
                },
                "a step of 17 tokens; at most 16 fit"},
        BadStep{"TwoSlices", [](v1::Step&, Slice& s) { s.set_sequence_id(1); },
                "sequence 1: has two slices"},
        BadStep{"NoTokens", [](v1::Step&, Slice& s) { s.clear_token_ids(); },
                "sequence 2: has a slice without tokens"},
        BadStep{"NoOutput", [](v1::Step&, Slice& s) { s.clear_output(); },
                "sequence 2: asks for output 0, which is none"},
        BadStep{"UnknownOutput",
                [](v1::Step&, Slice& s) { s.set_output(static_cast<v1::SliceOutput>(77)); },
                "sequence 2: asks for output 77, which is none"},
        BadStep{"UnknownToken", [](v1::Step&, Slice& s) { s.set_token_ids(0, 100); },
                "sequence 2: token 100 is outside the vocabulary of 100"},
        BadStep{"UnknownScoredToken",
                [](v1::Step&, Slice& s) { s.add_scored_token_ids(UINT32_MAX); },
                "sequence 2: token 4294967295 is outside the vocabulary of 100"},
        BadStep{"UnknownPromptToken",
                [](v1::Step&, Slice& s) { s.mutable_history()->add_prompt_token_ids(101); },
                "sequence 2: token 101 is outside the vocabulary of 100"},
        BadStep{"UnknownReplyToken",
                [](v1::Step&, Slice& s) { s.mutable_history()->add_reply_token_ids(102); },
                "sequence 2: token 102 is outside the vocabulary of 100"},
        BadStep{"TooManyScores",
                [](v1::Step&, Slice& s) {
                  s.add_scored_token_ids(1);
                  s.add_scored_token_ids(1);
                },
                "sequence 2: asks for 2 scores after 1 tokens"},
        BadStep{"UnknownNextToken", [](v1::Step&, Slice& s) { s.set_next_token_id(100); },
                "sequence 2: token 100 is outside the vocabulary of 100"},
        BadStep{"NothingButDrafts", [](v1::Step&, Slice& s) { s.set_num_draft_tokens(1); },
                "sequence 2: has 1 drafts among 1 tokens, output SLICE_OUTPUT_SAMPLE"},
        BadStep{"DraftsWithoutSampling",
                [](v1::Step& step, Slice&) { step.mutable_slices(0)->set_num_draft_tokens(2); },
                "sequence 1: has 2 drafts among 5 tokens, output SLICE_OUTPUT_NONE"},
        BadStep{"PastTheContext", [](v1::Step&, Slice& s) { s.set_first_position(24); },
                "sequence 2: has a token at position 24; the model has 24"},
        BadStep{"FarPastTheContext", [](v1::Step&, Slice& s) { s.set_first_position(UINT32_MAX); },
                "sequence 2: has a token at position 4294967295; the model has 24"},
        BadStep{"PastTheTable", [](v1::Step&, Slice& s) { s.set_first_position(12); },
                "sequence 2: has a token at position 12 and 3 KV blocks of 4 tokens"},
        BadStep{"UnknownBlock", [](v1::Step&, Slice& s) { s.set_kv_blocks(0, 8); },
                "sequence 2: names KV block 8 of 8"},
        BadStep{"BlockOfAnother", [](v1::Step&, Slice& s) { s.set_kv_blocks(2, 0); },
                "sequence 2: KV block 0 is written twice in one step"},
        BadStep{"BlockTwice",
                [](v1::Step& step, Slice&) { step.mutable_slices(0)->set_kv_blocks(1, 7); },
                "sequence 1: KV block 7 is written twice in one step"},
        BadStep{"CopyFromNowhere",
                [](v1::Step& step, Slice&) { step.mutable_block_copies(0)->set_from(8); },
                "a copy of KV block 8 to 0; there are 8"},
        BadStep{"CopyToNowhere",
                [](v1::Step& step, Slice&) { step.mutable_block_copies(0)->set_to(8); },
                "a copy of KV block 7 to 8; there are 8"},
        BadStep{
            "Sampling",
            [](v1::Step&,
               Slice&
                   s) { s.mutable_sampling()->set_top_p(std::numeric_limits<float>::quiet_NaN()); },
            "sequence 2: top_p: must be from 0 to 1, is nan"},
        BadStep{"BiasedToken",
                [](v1::Step&,
                   Slice& s) { s.mutable_sampling()->add_logit_biases()->set_token_id(100); },
                "sequence 2: logit_bias: token 100 is outside the vocabulary of 100"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace caravan
