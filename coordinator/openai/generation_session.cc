#include "coordinator/openai/generation_session.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "coordinator/http/http_error.h"

namespace caravan {
namespace {

std::string EventText(const nlohmann::json& data) {
  return absl::StrCat("data: ", JsonText(data), "\n\n");
}

}  // namespace

void GenerationSession::Start(std::shared_ptr<Responder> responder,
                              std::unique_ptr<Generation> generation,
                              std::vector<std::unique_ptr<JobHandle>> jobs) {
  const std::shared_ptr<GenerationSession> session(
      new GenerationSession(std::move(responder), std::move(generation), std::move(jobs)));
  // What they keep goes with the answer: the session, and with it the jobs.
  session->responder_->SetEvents([session] { session->ended_ = true; },
                                 [session] { session->PumpAll(); });
  if (session->generation_->streams()) {
    // No proxy on the way should collect the events.
    session->responder_->StartStream(
        {200,
         "text/event-stream",
         "",
         {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
  }
  // Not here: the caller's thread may be another.
  session->responder_->Post([session] { session->Listen(); });
}

void GenerationSession::Listen() {
  if (ended_) return;  // the client has gone already
  for (size_t i = 0; i < jobs_.size(); ++i) {
    jobs_[i]->SetListener([weak = weak_from_this(), i] {
      const std::shared_ptr<GenerationSession> self = weak.lock();
      if (self == nullptr) return;
      self->responder_->Post([weak, i] {
        if (const std::shared_ptr<GenerationSession> posted = weak.lock()) posted->Pump(i);
      });
    });
  }
}

void GenerationSession::PumpAll() {
  for (size_t i = 0; i < jobs_.size(); ++i) Pump(i);
}

void GenerationSession::Pump(size_t choice) {
  while (!ended_ && jobs_[choice] != nullptr) {
    // Meanwhile the job's stream keeps what comes, at most the whole reply; on_drained goes on.
    if (generation_->streams() && !responder_->writable()) return;
    const absl::StatusOr<JobUpdate> update = jobs_[choice]->Next(absl::ZeroDuration());
    if (!update.ok()) return Fail(update.status());
    if (update->empty()) return;
    if (generation_->Push(choice, *update)) jobs_[choice] = nullptr;
    WriteChunks();
    FinishIfDone();
  }
}

void GenerationSession::WriteChunks() {
  if (!generation_->streams()) return;
  std::string events;
  for (const nlohmann::json& chunk : generation_->TakeChunks()) events += EventText(chunk);
  responder_->Write(std::move(events));
}

void GenerationSession::Fail(const absl::Status& why) {
  ended_ = true;
  jobs_.clear();  // what is left of the other choices is of no use
  if (!generation_->streams()) return responder_->Send(ErrorResponse(why));
  responder_->Write(EventText(ErrorJson(why)));
  responder_->Finish();
}

void GenerationSession::FinishIfDone() {
  if (!generation_->done()) return;
  ended_ = true;
  if (!generation_->streams()) {
    return responder_->Send({200, "application/json", JsonText(generation_->Response()), {}});
  }
  responder_->Write("data: [DONE]\n\n");
  responder_->Finish();
}

}  // namespace caravan
