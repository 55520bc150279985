// caravan calibrate: what each column of each matrix is multiplied with over some text, for
// `caravan pack --imatrix`.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/int_math.h"
#include "base/status_macros.h"
#include "caravan/v1/pipeline.pb.h"
#include "cli/commands.h"
#include "cli/progress_bar.h"
#include "cli/stop_signals.h"
#include "cli/text_flags.h"
#include "cli/thread_count.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/observing_backend.h"
#include "model/pack/importance.h"
#include "model/pack/pack_file_writer.h"
#include "model/stored_model.h"
#include "model/text_model.h"
#include "model/text_windows.h"
#include "worker/input_statistics.h"
#include "worker/stage.h"

namespace caravan {
namespace {

struct CalibrateFlags {
  std::string model;
  std::string text;
  std::string output;
  std::optional<int64_t> window;  // tokens
  int threads = 0;
};

/// The whole model as one stage, its inputs observed.
absl::StatusOr<std::unique_ptr<Stage>> LoadObserved(const StoredModel& model, int64_t window,
                                                    int threads, const StopSignals& signals,
                                                    InputObserver* observer) {
  const ModelConfig& config = model.config();
  StageSpec whole = {0, config.num_hidden_layers, /*embeds=*/true, /*has_head=*/true};
  // Checkpoints may leave the layer of multi-token prediction out, whatever their config says.
  whole.drafts = config.num_nextn_predict_layers > 0 &&
                 model.Find(absl::StrCat("model.layers.", config.num_hidden_layers,
                                         ".eh_proj.weight")) != nullptr;
  CpuOptions cpu;
  CARAVAN_ASSIGN_OR_RETURN(cpu.num_threads, ThreadCount(threads));
  CARAVAN_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeCpuBackend(cpu));
  Stage::Options options;
  options.name = "calibration";
  options.max_step_tokens = window;
  const int64_t blocks = CeilDiv<int64_t>(window, kKvBlockTokens);
  options.kv_budget_bytes = blocks * kKvBlockTokens * whole.num_kv_layers() *
                            config.Mla().kv_width() * static_cast<int64_t>(sizeof(float));
  ProgressBar bar("loading");
  absl::StatusOr<std::unique_ptr<Stage>> stage =
      Stage::Create(config, whole, model, MakeObservingBackend(std::move(backend), observer),
                    options, [&](int64_t loaded, int64_t total) {
                      bar.Show(loaded, total);
                      return !signals.token().stop_requested();
                    });
  if (!stage.ok()) bar.Break();
  return stage;
}

/// Every row goes through all layers and the head, and each but the last through the layer of
/// multi-token prediction.
absl::Status RunWindow(absl::Span<const int32_t> ids, Stage& stage) {
  v1::Step step;
  v1::SequenceSlice& slice = *step.add_slices();
  for (const int32_t id : ids) {
    slice.add_token_ids(static_cast<uint32_t>(id));
    // A row whose logits somebody wants is projected; these scores nobody reads.
    slice.add_scored_token_ids(static_cast<uint32_t>(id));
  }
  slice.set_output(v1::SLICE_OUTPUT_NONE);
  slice.set_draft(stage.spec().drafts);
  for (int64_t block = 0; block < stage.kv_cache().num_blocks(); ++block) {
    slice.add_kv_blocks(static_cast<uint32_t>(block));
  }
  step = stage.Run(std::move(step));
  if (!step.has_error()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(step.error().code()), step.error().message());
}

absl::Status Calibrate(const CalibrateFlags& flags) {
  const StopSignals signals;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<StoredModel> model, OpenStoredModel(flags.model));
  CARAVAN_ASSIGN_OR_RETURN(
      const int64_t window,
      WindowTokens(flags.window, model->config().max_position_embeddings, "model's context"));
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<TextModel> text,
                           TextModel::Load(flags.model, model->config()));
  CARAVAN_ASSIGN_OR_RETURN(std::vector<int32_t> ids, ReadTextTokens(flags.text, text->tokenizer()));
  if (ids.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("--text ", flags.text, ": is empty"));
  }
  const int64_t total = static_cast<int64_t>(ids.size());
  TextWindows windows(*text, std::move(ids), window);
  // What cannot be written is said before hours of work; without Commit nothing is left.
  CARAVAN_RETURN_IF_ERROR(Annotate(PackFileWriter::Create(flags.output).status(), "--out"));
  InputStatistics statistics;
  CARAVAN_ASSIGN_OR_RETURN(const std::unique_ptr<Stage> stage,
                           LoadObserved(*model, window, flags.threads, signals, &statistics));
  ProgressBar bar("calibrating", ProgressBar::Unit::kTokens);
  int64_t done = 0;
  for (ids = windows.Next(); !ids.empty(); ids = windows.Next()) {
    bar.Show(std::min(done, total - 1), total);
    absl::Status run = RunWindow(ids, *stage);
    if (signals.token().stop_requested()) run = absl::CancelledError("calibrating was stopped");
    if (!run.ok()) {
      bar.Break();
      return run;
    }
    done += static_cast<int64_t>(ids.size());
  }
  bar.Show(total, total);
  const absl::Status written =
      statistics.Result(model->config(), stage->spec(), stage->weights()).Write(flags.output);
  return Annotate(written, "--out");
}

}  // namespace

void AddCalibrateCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "calibrate",
      "Measure over a text what each column of each matrix weighs, for pack --imatrix");
  const auto flags = std::make_shared<CalibrateFlags>();
  AddConfigOption(*command);
  command->add_option("--model", flags->model, kModelHelp)->required();
  command
      ->add_option("--text", flags->text,
                   "UTF-8 text such as the model will meet; tokens spelt out in it count")
      ->required();
  command->add_option("--out", flags->output, "File to write, by custom NAME.imatrix")->required();
  command
      ->add_option("--window", flags->window,
                   "Tokens of the text that see each other; at most the model's context")
      ->check(CLI::Range(2, 8192))
      ->default_str(absl::StrCat(kDefaultWindow));
  command->add_option("--threads", flags->threads, "CPU threads; 0: one a core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->callback([flags, &body] { body = [flags] { return ReportStatus(Calibrate(*flags)); }; });
}

}  // namespace caravan
