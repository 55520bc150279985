#include "tests/coordinator/fake_pipeline.h"

#include <algorithm>
#include <utility>

#include "gtest/gtest.h"

namespace caravan {

class FakePipeline::Channel : public ActivationChannel {
 public:
  explicit Channel(FakePipeline* pipeline) : pipeline_(pipeline) {}
  absl::Status Send(v1::Step step) override { return pipeline_->Send(std::move(step)); }
  void Close() override { pipeline_->Close(); }

 private:
  FakePipeline* const pipeline_;
};

PipelineDriver::Pipeline FakePipeline::Connect() {
  PipelineDriver::Pipeline pipeline;
  pipeline.plan_version = options_.plan_version;
  pipeline.num_stages = options_.num_stages;
  pipeline.kv_blocks = options_.kv_blocks;
  pipeline.kv_block_tokens = options_.kv_block_tokens;
  pipeline.max_step_tokens = options_.max_step_tokens;
  pipeline.first_hop = std::make_unique<Channel>(this);
  return pipeline;
}

v1::Step FakePipeline::Answer(v1::Step step) {
  MutexLock lock(&mu_);
  return AnswerLocked(std::move(step));
}

v1::Step FakePipeline::AnswerLocked(v1::Step step) {
  EXPECT_EQ(step.plan_version(), options_.plan_version);
  EXPECT_GT(step.step_id(), last_step_id_);
  last_step_id_ = step.step_id();
  EXPECT_LE(++steps_in_flight_, options_.num_stages);
  EXPECT_GT(step.slices_size(), 0) << "a step for nothing";
  for (const v1::BlockCopy& copy : step.block_copies()) blocks_[copy.to()] = blocks_[copy.from()];

  int64_t rows = 0;
  std::set<uint64_t> sequences;
  std::set<uint32_t> written;
  for (const v1::SequenceSlice& slice : step.slices()) {
    EXPECT_GT(slice.token_ids_size(), 0);
    EXPECT_TRUE(sequences.insert(slice.sequence_id()).second);
    rows += slice.token_ids_size();
    Write(slice, written);
    Answer(slice, step.add_results());
  }
  EXPECT_LE(rows, options_.max_step_tokens);
  sequences_seen_.insert(sequences.begin(), sequences.end());
  max_slices_in_a_step_ = std::max(max_slices_in_a_step_, step.slices_size());
  return step;
}

void FakePipeline::Write(const v1::SequenceSlice& slice, std::set<uint32_t>& written) {
  const int64_t block_tokens = options_.kv_block_tokens;
  const int64_t end = slice.first_position() + slice.token_ids_size();
  ASSERT_GE(slice.kv_blocks_size() * block_tokens, end);
  std::set<uint32_t> own;
  for (int i = 0; i < slice.token_ids_size(); ++i) {
    const int64_t position = slice.first_position() + i;
    const uint32_t block = slice.kv_blocks(static_cast<int>(position / block_tokens));
    ASSERT_LT(block, options_.kv_blocks);
    own.insert(block);
    blocks_[block][position % block_tokens] = static_cast<int32_t>(slice.token_ids(i));
  }
  for (const uint32_t block : own) {
    EXPECT_TRUE(written.insert(block).second) << "two slices write into block " << block;
  }
}

std::vector<int32_t> FakePipeline::Cached(const v1::SequenceSlice& slice, int64_t length) const {
  std::vector<int32_t> tokens;
  for (int64_t position = 0; position < length; ++position) {
    const auto index = static_cast<int>(position / options_.kv_block_tokens);
    const auto block = blocks_.find(slice.kv_blocks(index));
    const int64_t offset = position % options_.kv_block_tokens;
    const bool is_there = block != blocks_.end() && block->second.count(offset) > 0;
    EXPECT_TRUE(is_there) << "sequence " << slice.sequence_id() << " reads position " << position
                          << ", which nobody wrote";
    tokens.push_back(is_there ? block->second.at(offset) : 0);
  }
  return tokens;
}

void FakePipeline::Answer(const v1::SequenceSlice& slice, v1::SliceResult* result) const {
  const ToyModel& model = options_.model;
  result->set_sequence_id(slice.sequence_id());
  const std::vector<int32_t> tokens =
      Cached(slice, slice.first_position() + slice.token_ids_size());
  const auto before = [&](int64_t row) {
    return absl::MakeConstSpan(tokens).first(slice.first_position() + static_cast<size_t>(row) + 1);
  };
  for (int row = 0; row < slice.scored_token_ids_size(); ++row) {
    v1::TokenScore& score = *result->add_scored();
    score.set_token_id(slice.scored_token_ids(row));
    score.set_log_probability(
        model.Score(before(row), static_cast<int32_t>(slice.scored_token_ids(row))));
  }
  if (slice.output() == v1::SLICE_OUTPUT_LOGITS) {
    for (int row = 0; row < slice.token_ids_size(); ++row) {
      const std::vector<float> logits = model.Logits(before(row));
      result->mutable_logits()->append(reinterpret_cast<const char*>(logits.data()),
                                       logits.size() * sizeof(float));
    }
  } else if (slice.output() == v1::SLICE_OUTPUT_SAMPLE) {
    *result->add_sampled() = ToProto(model.Next(tokens, slice.sampling()));
  } else {
    EXPECT_EQ(slice.output(), v1::SLICE_OUTPUT_NONE);
  }
}

absl::Status FakePipeline::Send(v1::Step step) {
  MutexLock lock(&mu_);
  if (closed_) return absl::CancelledError("closed");
  if (!first_hop_.ok()) return first_hop_;
  answered_.push_back(AnswerLocked(std::move(step)));
  changed_.SignalAll();
  return absl::OkStatus();
}

void FakePipeline::Close() {
  MutexLock lock(&mu_);
  closed_ = true;
  changed_.SignalAll();
}

v1::Step FakePipeline::Take() {
  MutexLock lock(&mu_);
  while (answered_.empty()) changed_.Wait(&mu_);
  v1::Step step = std::move(answered_.front());
  answered_.pop_front();
  return step;
}

void FakePipeline::MarkHome() {
  MutexLock lock(&mu_);
  --steps_in_flight_;
}

absl::Status FakePipeline::Deliver(PipelineDriver* driver, v1::Step step) {
  MarkHome();
  return driver->Receive(std::move(step));
}

void FakePipeline::Deliveries(PipelineDriver* driver) {
  while (true) {
    v1::Step step;
    {
      MutexLock lock(&mu_);
      while (answered_.empty() && !players_leave_) changed_.Wait(&mu_);
      if (players_leave_) return;
      step = std::move(answered_.front());
      answered_.pop_front();
    }
    // A refusal means that the test has ended the plan.
    Deliver(driver, std::move(step)).IgnoreError();
  }
}

FakePipeline::Player::Player(FakePipeline* pipeline, PipelineDriver* driver)
    : pipeline_(pipeline), thread_([pipeline, driver] { pipeline->Deliveries(driver); }) {}

FakePipeline::Player::~Player() {
  {
    MutexLock lock(&pipeline_->mu_);
    pipeline_->players_leave_ = true;
    pipeline_->changed_.SignalAll();
  }
  thread_.join();
}

void FakePipeline::BreakFirstHop(const absl::Status& why) {
  MutexLock lock(&mu_);
  first_hop_ = why;
}

void FakePipeline::WaitUntilClosed() {
  MutexLock lock(&mu_);
  while (!closed_) changed_.Wait(&mu_);
}

int64_t FakePipeline::blocks_written() const {
  MutexLock lock(&mu_);
  return static_cast<int64_t>(blocks_.size());
}

int FakePipeline::max_slices_in_a_step() const {
  MutexLock lock(&mu_);
  return max_slices_in_a_step_;
}

std::set<uint64_t> FakePipeline::sequences_seen() const {
  MutexLock lock(&mu_);
  return sequences_seen_;
}

}  // namespace caravan
