#ifndef CARAVAN_COORDINATOR_PIPELINE_STATS_H_
#define CARAVAN_COORDINATOR_PIPELINE_STATS_H_

// What the pipeline driver has done and what it holds, at one moment. Plain values.

#include <cstdint>

namespace caravan {

/// Jobs of one JobPriority.
struct JobCounts {
  int64_t queued = 0;
  int64_t running = 0;
};

struct PipelineStats {
  // Since the coordinator's start, over all plans; these only grow.
  int64_t prompt_tokens = 0;     // of prompts that went through the pipeline or were found cached
  int64_t generated_tokens = 0;  // that readers were given
  // Prompt tokens of admitted sequences, and those of them whose blocks were there already.
  int64_t prefix_cache_query_tokens = 0;
  int64_t prefix_cache_hit_tokens = 0;
  int64_t preemptions = 0;            // sequences that gave their blocks back
  int64_t interruptions = 0;          // of running jobs, whose pipeline went or step failed
  int64_t steps = 0;                  // that came home
  int64_t draft_tokens = 0;           // that were verified
  int64_t draft_accepted_tokens = 0;  // of these, taken over

  // Now. No pipeline: no blocks.
  JobCounts interactive;
  JobCounts bulk;
  int64_t steps_in_flight = 0;
  bool speculating =
      false;  // steps draft: it was asked for, and SpeculationGate finds that it pays
  // KV blocks of the stage that has fewest: total = used + cached + free.
  int64_t kv_blocks_total = 0;
  int64_t kv_blocks_used = 0;    // of running sequences
  int64_t kv_blocks_cached = 0;  // of no sequence, kept for prompts that begin alike
};

}  // namespace caravan

#endif  // CARAVAN_COORDINATOR_PIPELINE_STATS_H_
