#ifndef CARAVAN_COORDINATOR_OPENAI_GENERATION_SESSION_H_
#define CARAVAN_COORDINATOR_OPENAI_GENERATION_SESSION_H_

// Carries a generation's reply from its jobs to its client: as a stream of server-sent events, or
// whole at the end. When the client goes, so do the jobs.

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/http/responder.h"
#include "coordinator/openai/generation.h"
#include "coordinator/pipeline_driver.h"

namespace caravan {

/// Lives as long as the answer is under way: the responder's events keep it. Runs on the
/// responder's thread of control.
class GenerationSession : public std::enable_shared_from_this<GenerationSession> {
 public:
  /// `jobs` are those of generation->TakeSpecs(), in order. Returns at once. Called by any thread.
  static void Start(std::shared_ptr<Responder> responder, std::unique_ptr<Generation> generation,
                    std::vector<std::unique_ptr<JobHandle>> jobs);

 private:
  GenerationSession(std::shared_ptr<Responder> responder, std::unique_ptr<Generation> generation,
                    std::vector<std::unique_ptr<JobHandle>> jobs)
      : responder_(std::move(responder)),
        generation_(std::move(generation)),
        jobs_(std::move(jobs)) {}

  /// From now on news of the jobs is pumped.
  void Listen();
  /// Takes in what there is of all jobs, as long as the client keeps up.
  void PumpAll();
  void Pump(size_t choice);
  void WriteChunks();
  void Fail(const absl::Status& why);
  void FinishIfDone();

  const std::shared_ptr<Responder> responder_;
  const std::unique_ptr<Generation> generation_;
  std::vector<std::unique_ptr<JobHandle>> jobs_;  // nullptr: has ended
  bool ended_ = false;
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_OPENAI_GENERATION_SESSION_H_
