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

ArchiveContents FakeArchive::Contents() const {
  ArchiveContents contents;
  contents.root = NameKvRoot("toy");
  contents.capacity = 1000;
  for (const std::string& name : names) contents.names.push_back(*KvBlockNameFromWire(name));
  return contents;
}

PipelineDriver::Pipeline FakePipeline::Connect() {
  PipelineDriver::Pipeline pipeline;
  pipeline.plan_version = options_.plan_version;
  pipeline.num_stages = options_.num_stages;
  pipeline.kv_blocks = options_.kv_blocks;
  pipeline.kv_block_tokens = options_.kv_block_tokens;
  pipeline.max_step_tokens = options_.max_step_tokens;
  pipeline.drafts = options_.drafts != Drafts::kNone;
  if (options_.archive != nullptr) pipeline.archive = options_.archive->Contents();
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
  EXPECT_GT(step.slices_size() + step.kept_blocks_size(), 0) << "a step for nothing";
  if (!MoveArchived(step)) return step;
  for (const v1::BlockCopy& copy : step.block_copies()) {
    blocks_[copy.to()] = blocks_[copy.from()];
    drafting_seen_[copy.to()] = drafting_seen_[copy.from()];
  }

  int64_t rows = 0;
  std::set<uint64_t> sequences;
  std::set<uint32_t> written;
  for (const v1::SequenceSlice& slice : step.slices()) {
    EXPECT_GT(slice.token_ids_size(), 0);
    EXPECT_TRUE(sequences.insert(slice.sequence_id()).second);
    rows += slice.token_ids_size();
    CheckDrafts(slice);
    Write(slice, written);
    Answer(slice, step.add_results());
  }
  EXPECT_LE(rows, options_.max_step_tokens);
  sequences_seen_.insert(sequences.begin(), sequences.end());
  max_slices_in_a_step_ = std::max(max_slices_in_a_step_, step.slices_size());
  return step;
}

bool FakePipeline::MoveArchived(v1::Step& step) {
  FakeArchive* const archive = options_.archive;
  EXPECT_TRUE(archive != nullptr || step.kept_blocks_size() + step.restored_blocks_size() == 0);
  for (const v1::ArchivedBlock& kept : step.kept_blocks()) {
    EXPECT_EQ(std::ssize(blocks_[kept.block()]), options_.kv_block_tokens);
    if (archive->blocks.count(kept.name()) > 0) {
      EXPECT_EQ(archive->blocks[kept.name()].tokens, blocks_[kept.block()]);
      continue;
    }
    archive->blocks[kept.name()] = {blocks_[kept.block()], drafting_seen_[kept.block()]};
    archive->names.push_back(kept.name());
  }
  for (const v1::ArchivedBlock& restored : step.restored_blocks()) {
    const auto found = archive->blocks.find(restored.name());
    if (archive->loses_all || found == archive->blocks.end()) {
      step.mutable_error()->set_code(static_cast<int>(absl::StatusCode::kNotFound));
      step.mutable_error()->set_message("no such block is archived");
      return false;
    }
    blocks_[restored.block()] = found->second.tokens;
    drafting_seen_[restored.block()] = found->second.drafting_seen;
    ++archive->restored;
  }
  return true;
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
    drafting_seen_[block].erase(position % block_tokens);
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

void FakePipeline::CheckDrafts(const v1::SequenceSlice& slice) {
  EXPECT_TRUE(!slice.draft() || options_.drafts != Drafts::kNone);
  const auto next = next_tokens_.find(slice.sequence_id());
  if (next != next_tokens_.end() && next->second.first == slice.first_position()) {
    EXPECT_EQ(static_cast<int32_t>(slice.token_ids(0)), next->second.second);
  }
  const int64_t num_drafts = slice.num_draft_tokens();
  if (num_drafts > 0) {
    ASSERT_EQ(slice.output(), v1::SLICE_OUTPUT_SAMPLE);
    ASSERT_LT(num_drafts, slice.token_ids_size());
    const auto& [position, drafts] = drafts_[slice.sequence_id()];
    ASSERT_EQ(slice.first_position() + slice.token_ids_size() - num_drafts, position);
    ASSERT_LE(static_cast<size_t>(num_drafts), drafts.size());
    const std::vector<int32_t> carried(slice.token_ids().end() - num_drafts,
                                       slice.token_ids().end());
    EXPECT_EQ(carried, std::vector<int32_t>(drafts.begin(), drafts.begin() + num_drafts));
  }
  next_tokens_.erase(slice.sequence_id());
  drafts_.erase(slice.sequence_id());
}

void FakePipeline::Answer(const v1::SequenceSlice& slice, v1::SliceResult* result) {
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
  const int64_t num_tokens = slice.token_ids_size() - static_cast<int>(slice.num_draft_tokens());
  if (slice.output() == v1::SLICE_OUTPUT_LOGITS) {
    for (int row = 0; row < slice.token_ids_size(); ++row) {
      const std::vector<float> logits = model.Logits(before(row));
      result->mutable_logits()->append(reinterpret_cast<const char*>(logits.data()),
                                       logits.size() * sizeof(float));
    }
  } else if (slice.output() == v1::SLICE_OUTPUT_SAMPLE) {
    Sample(slice, tokens, result);
    std::vector<int32_t> known(tokens.begin(), tokens.end() - slice.num_draft_tokens());
    for (const v1::TokenScore& token : result->sampled()) {
      known.push_back(static_cast<int32_t>(token.token_id()));
    }
    if (slice.draft()) Draft(slice, num_tokens + result->sampled_size() - 1, known, result);
  } else {
    EXPECT_EQ(slice.output(), v1::SLICE_OUTPUT_NONE);
    if (slice.draft()) Draft(slice, num_tokens - (slice.has_next_token_id() ? 0 : 1), {}, result);
  }
  if (slice.has_next_token_id()) {
    next_tokens_[slice.sequence_id()] = {slice.first_position() + slice.token_ids_size(),
                                         static_cast<int32_t>(slice.next_token_id())};
  }
}

void FakePipeline::Sample(const v1::SequenceSlice& slice, absl::Span<const int32_t> tokens,
                          v1::SliceResult* result) const {
  const size_t num_known = tokens.size() - slice.num_draft_tokens();
  if (slice.has_history()) {
    std::vector<int32_t> history(slice.history().prompt_token_ids().begin(),
                                 slice.history().prompt_token_ids().end());
    history.insert(history.end(), slice.history().reply_token_ids().begin(),
                   slice.history().reply_token_ids().end());
    EXPECT_EQ(absl::MakeConstSpan(history), tokens.first(num_known)) << "drafts are no history";
  }
  for (size_t count = num_known; count <= tokens.size(); ++count) {
    const ScoredToken token = options_.model.Next(tokens.first(count), slice.sampling());
    *result->add_sampled() = ToProto(token);
    if (count < tokens.size() && tokens[count] != token.token_id) return;
  }
}

void FakePipeline::Draft(const v1::SequenceSlice& slice, int64_t num_rows,
                         std::vector<int32_t> known, v1::SliceResult* result) {
  const int64_t block_tokens = options_.kv_block_tokens;
  const auto places = [&](int64_t position) -> std::set<int64_t>& {
    return drafting_seen_[slice.kv_blocks(static_cast<int>(position / block_tokens))];
  };
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t position = slice.first_position() + row;
    places(position).insert(position % block_tokens);
  }
  if (known.empty()) return;
  ++drafting_slices_;
  for (int64_t position = 0; position < slice.first_position(); ++position) {
    if (places(position).count(position % block_tokens) == 0) ++draft_gaps_;
  }
  const auto position = static_cast<int64_t>(known.size());
  std::vector<int32_t> drafts;
  for (int i = 0; i < options_.num_drafts; ++i) {
    int32_t draft = options_.model.Next(known, slice.sampling()).token_id;
    const bool wrong =
        options_.drafts == Drafts::kWrong ||
        (options_.drafts == Drafts::kMixed && ToyModel::Hash(known, /*seed=*/3) % 3 == 0);
    if (wrong) draft = (draft + 1) % static_cast<int32_t>(options_.model.vocab_size);
    result->add_draft_token_ids(static_cast<uint32_t>(draft));
    drafts.push_back(draft);
    known.push_back(draft);
  }
  drafts_[slice.sequence_id()] = {position, std::move(drafts)};
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

v1::Step FakePipeline::Take() { return *TakeWithin(absl::InfiniteDuration()); }

std::optional<v1::Step> FakePipeline::TakeWithin(absl::Duration timeout) {
  const absl::Duration deadline = SteadyClock().Now() + timeout;
  MutexLock lock(&mu_);
  while (answered_.empty()) {
    const absl::Duration left = deadline - SteadyClock().Now();
    if (left <= absl::ZeroDuration()) return std::nullopt;
    changed_.WaitWithTimeout(&mu_, left);
  }
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

int64_t FakePipeline::drafting_slices() const {
  MutexLock lock(&mu_);
  return drafting_slices_;
}

int64_t FakePipeline::draft_gaps() const {
  MutexLock lock(&mu_);
  return draft_gaps_;
}

std::set<uint64_t> FakePipeline::sequences_seen() const {
  MutexLock lock(&mu_);
  return sequences_seen_;
}

}  // namespace caravan
