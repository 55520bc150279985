#ifndef CARAVAN_CLI_COMMANDS_H_
#define CARAVAN_CLI_COMMANDS_H_

// The subcommands, one a file. Each adds itself and its options to `app`; when the command line
// names it, it sets `body`.

#include "CLI/CLI.hpp"
#include "cli/command.h"

namespace caravan {

void AddBenchCommand(CLI::App& app, CommandBody& body);
/// To `bench` itself.
void AddBenchCacheCommand(CLI::App& bench, CommandBody& body);
void AddBenchOffloadCommand(CLI::App& bench, CommandBody& body);
void AddBenchPlanCommand(CLI::App& bench, CommandBody& body);
void AddBenchServeCommand(CLI::App& bench, CommandBody& body);
void AddBenchSpeculateCommand(CLI::App& bench, CommandBody& body);
void AddCalibrateCommand(CLI::App& app, CommandBody& body);
void AddCancelCommand(CLI::App& app, CommandBody& body);
void AddCertsCommand(CLI::App& app, CommandBody& body);
void AddChatCommand(CLI::App& app, CommandBody& body);
void AddCoordinatorCommand(CLI::App& app, CommandBody& body);
void AddDrainCommand(CLI::App& app, CommandBody& body);
void AddEvalCommand(CLI::App& app, CommandBody& body);
void AddJobsCommand(CLI::App& app, CommandBody& body);
void AddPackCommand(CLI::App& app, CommandBody& body);
void AddPlanCommand(CLI::App& app, CommandBody& body);
void AddProbeCommand(CLI::App& app, CommandBody& body);
/// To `probe` itself.
/// What `probe` itself does, without a subcommand.
void AddProbeBoxOptions(CLI::App& probe, CommandBody& body);
void AddProbeLinkCommand(CLI::App& probe, CommandBody& body);
void AddProbeListenCommand(CLI::App& probe, CommandBody& body);
void AddRunCommand(CLI::App& app, CommandBody& body);
void AddSimulateCommand(CLI::App& app, CommandBody& body);
void AddStatusCommand(CLI::App& app, CommandBody& body);
void AddSubmitCommand(CLI::App& app, CommandBody& body);
void AddSynthCommand(CLI::App& app, CommandBody& body);
void AddTokenizeCommand(CLI::App& app, CommandBody& body);
void AddVerifyCommand(CLI::App& app, CommandBody& body);
void AddWorkerCommand(CLI::App& app, CommandBody& body);

}  // namespace caravan

#endif  // CARAVAN_CLI_COMMANDS_H_
