#include "coordinator/job_service.h"

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

// How long a reader waits for news before it looks whether its client is still there.
constexpr absl::Duration kClientCheckInterval = absl::Milliseconds(100);

// A reply without a limit of its own ends where the context does.
constexpr int64_t kNoLimit = INT64_MAX / 2;

absl::StatusOr<JobSpec> MakeJobSpec(const v1::SubmitRequest& request, const TextModel& text) {
  std::vector<ChatTurn> turns;
  for (const v1::ChatMessage& message : request.messages()) {
    turns.push_back({message.role(), message.content()});
  }
  JobSpec spec;
  CARAVAN_ASSIGN_OR_RETURN(spec.prompt, text.chat().Encode(turns));
  spec.max_new_tokens = request.max_tokens() == 0 ? kNoLimit : request.max_tokens();
  spec.sampling = request.sampling();
  spec.stop_token_ids = text.stop_token_ids();
  spec.reply.assign(request.reply_token_ids().begin(), request.reply_token_ids().end());
  // The last one is generated again: that tells whether the reply is this model's, and whether it
  // had ended.
  if (!spec.reply.empty()) spec.reply.pop_back();
  return spec;
}

/// The reply as text, from behind what the client has.
class ResumedReply {
 public:
  ResumedReply(ReplyStream reply, const v1::SubmitRequest& request) : reply_(std::move(reply)) {
    for (const uint32_t id : request.reply_token_ids()) {
      last_known_ = static_cast<int32_t>(id);
      reply_.Push(*last_known_);
    }
  }

  /// Errors: FailedPrecondition - the token is not the client's last one.
  absl::StatusOr<std::vector<ReplyDelta>> Push(int32_t token_id) {
    if (!last_known_.has_value()) return reply_.Push(token_id);
    if (token_id != *last_known_) {
      return absl::FailedPreconditionError(absl::StrCat(
          "reply_token_ids: the model goes on with token ", token_id, " where the reply has ",
          *last_known_, ": it is of another model or of other parameters"));
    }
    last_known_.reset();
    return std::vector<ReplyDelta>();
  }

  std::vector<ReplyDelta> Finish() { return reply_.Finish(); }

 private:
  ReplyStream reply_;
  std::optional<int32_t> last_known_;  // until it is generated again
};

/// Counts a job's tokens against the clock.
class Stopwatch {
 public:
  explicit Stopwatch(const Clock& clock) : clock_(clock), started_(clock.Now()) {}

  void CountTokens(size_t tokens) {
    if (tokens == 0) return;
    last_token_ = clock_.Now();
    if (num_tokens_ == 0) first_token_ = last_token_;
    num_tokens_ += tokens;
  }

  /// `known_tokens`: that an earlier run has generated.
  void FillIn(size_t known_tokens, v1::JobFinished& finished) const {
    finished.set_completion_tokens(static_cast<uint32_t>(known_tokens + num_tokens_));
    if (num_tokens_ == 0) return;
    finished.set_time_to_first_token_s(absl::ToDoubleSeconds(first_token_ - started_));
    const double decode_s = absl::ToDoubleSeconds(last_token_ - first_token_);
    if (num_tokens_ > 1 && decode_s > 0) {
      finished.set_decode_tokens_per_s(static_cast<double>(num_tokens_ - 1) / decode_s);
    }
  }

 private:
  const Clock& clock_;
  const absl::Duration started_;
  absl::Duration first_token_;
  absl::Duration last_token_;
  size_t num_tokens_ = 0;
};

bool WriteDeltas(const std::vector<ReplyDelta>& deltas, grpc::ServerWriter<v1::JobEvent>& writer) {
  for (const ReplyDelta& delta : deltas) {
    v1::JobEvent event;
    v1::TextDelta& out = *event.mutable_delta();
    out.set_part(delta.part == ReplyPart::kThought ? v1::TEXT_PART_THOUGHT : v1::TEXT_PART_ANSWER);
    out.set_text(delta.text);
    for (const int32_t id : delta.token_ids) out.add_token_ids(static_cast<uint32_t>(id));
    if (!writer.Write(event)) return false;
  }
  return true;
}

}  // namespace

grpc::Status JobService::Submit(grpc::ServerContext* context, const v1::SubmitRequest* request,
                                grpc::ServerWriter<v1::JobEvent>* writer) {
  Stopwatch stopwatch(*clock_);
  absl::StatusOr<JobSpec> spec = MakeJobSpec(*request, *text_);
  if (!spec.ok()) return ToGrpcStatus(spec.status());
  const uint32_t prompt_tokens = static_cast<uint32_t>(spec->prompt.size());
  const size_t known_tokens = spec->reply.size();
  const absl::StatusOr<std::unique_ptr<JobHandle>> job = driver_->Submit(*std::move(spec));
  if (!job.ok()) return ToGrpcStatus(job.status());

  v1::JobEvent event;
  event.mutable_accepted()->set_job_id((*job)->id());
  event.mutable_accepted()->set_prompt_tokens(prompt_tokens);
  bool client_is_there = writer->Write(event);
  ResumedReply reply(text_->NewReply(), *request);
  // Leaving early destroys the handle, which cancels the job.
  while (client_is_there && !context->IsCancelled()) {
    const absl::StatusOr<JobUpdate> update = (*job)->Next(kClientCheckInterval);
    if (!update.ok()) return ToGrpcStatus(update.status());
    stopwatch.CountTokens(update->tokens.size());
    for (const ScoredToken& token : update->tokens) {
      const absl::StatusOr<std::vector<ReplyDelta>> deltas = reply.Push(token.token_id);
      if (!deltas.ok()) return ToGrpcStatus(deltas.status());
      client_is_there = client_is_there && WriteDeltas(*deltas, *writer);
    }
    if (!update->finished) continue;
    client_is_there = client_is_there && WriteDeltas(reply.Finish(), *writer);
    v1::JobFinished& finished = *event.mutable_finished();
    finished.set_reason(update->reason);
    finished.set_prompt_tokens(prompt_tokens);
    stopwatch.FillIn(known_tokens, finished);
    writer->Write(event);
    return grpc::Status::OK;
  }
  return ToGrpcStatus(absl::CancelledError("the client went away"));
}

grpc::Status JobService::Cancel(grpc::ServerContext* /*context*/, const v1::CancelRequest* request,
                                v1::CancelResponse* /*response*/) {
  return ToGrpcStatus(driver_->Cancel(request->job_id()));
}

grpc::Status JobService::List(grpc::ServerContext* /*context*/, const v1::ListRequest* /*request*/,
                              v1::ListResponse* response) {
  for (v1::JobSummary& job : driver_->List()) *response->add_jobs() = std::move(job);
  return grpc::Status::OK;
}

}  // namespace caravan
