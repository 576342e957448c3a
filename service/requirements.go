package service

import (
	"strings"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// What calls take beside single permissions.
const (
	// anybody: whoever is authenticated.
	anybody = ""
	// anything: whoever may do something in the session.
	anything = "any"
)

// The words for permissions.
const (
	toRead     = "read"
	toWrite    = "write"
	toOptimize = "optimize"
	toAdmin    = "admin"
)

// requirements are the permissions that RPCs take, by their full names: of those that take several, or more for some of what they
// do, the one that all their calls take. Decisions are not made by this table but where the work is done; it tells what a call was
// judged by.
var requirements = map[string]string{
	methodName(setpointv1.SessionService_CreateSession_FullMethodName):    anybody,
	methodName(setpointv1.SessionService_GetSession_FullMethodName):       anything,
	methodName(setpointv1.SessionService_ListSessions_FullMethodName):     anybody,
	methodName(setpointv1.SessionService_KeepSessionAlive_FullMethodName): anything,
	methodName(setpointv1.SessionService_DeleteSession_FullMethodName):    ownerOnly,

	methodName(setpointv1.VariableService_RegisterVariable_FullMethodName):       toWrite,
	methodName(setpointv1.VariableService_BatchRegisterVariables_FullMethodName): toWrite,
	methodName(setpointv1.VariableService_GetVariable_FullMethodName):            toRead,
	methodName(setpointv1.VariableService_BatchGetVariables_FullMethodName):      toRead,
	methodName(setpointv1.VariableService_ListVariables_FullMethodName):          toRead,
	methodName(setpointv1.VariableService_SetVariable_FullMethodName):            toWrite,
	methodName(setpointv1.VariableService_BatchSetVariables_FullMethodName):      toWrite,
	methodName(setpointv1.VariableService_UpdateVariable_FullMethodName):         toWrite,
	methodName(setpointv1.VariableService_DeleteVariable_FullMethodName):         toWrite,

	methodName(setpointv1.HistoryService_ListHistory_FullMethodName):        toRead,
	methodName(setpointv1.HistoryService_GetVariableVersion_FullMethodName): toRead,
	methodName(setpointv1.HistoryService_RollbackVariable_FullMethodName):   toWrite,
	methodName(setpointv1.HistoryService_GetSnapshot_FullMethodName):        toRead,
	methodName(setpointv1.HistoryService_RollbackSession_FullMethodName):    toWrite,

	methodName(setpointv1.DependencyService_AddDependency_FullMethodName):    toWrite,
	methodName(setpointv1.DependencyService_RemoveDependency_FullMethodName): toWrite,
	methodName(setpointv1.DependencyService_ListDependencies_FullMethodName): toRead,
	methodName(setpointv1.DependencyService_ListDependents_FullMethodName):   toRead,
	methodName(setpointv1.DependencyService_GetUpdateOrder_FullMethodName):   toRead,
	methodName(setpointv1.DependencyService_GetGraph_FullMethodName):         toRead,

	methodName(setpointv1.OptimizationService_StartOptimization_FullMethodName):     toOptimize,
	methodName(setpointv1.OptimizationService_RenewOptimization_FullMethodName):     toOptimize,
	methodName(setpointv1.OptimizationService_ReportProgress_FullMethodName):        toOptimize,
	methodName(setpointv1.OptimizationService_StopOptimization_FullMethodName):      toOptimize,
	methodName(setpointv1.OptimizationService_AwaitOptimization_FullMethodName):     toOptimize,
	methodName(setpointv1.OptimizationService_GetOptimization_FullMethodName):       toRead,
	methodName(setpointv1.OptimizationService_ListOptimizations_FullMethodName):     toRead,
	methodName(setpointv1.OptimizationService_GetOptimizationStatus_FullMethodName): toRead,
	methodName(setpointv1.OptimizationService_ListTrials_FullMethodName):            toRead,

	methodName(setpointv1.AccessService_SetVariablePermissions_FullMethodName): toAdmin,
	methodName(setpointv1.AccessService_AddAccessRule_FullMethodName):          toAdmin,
	methodName(setpointv1.AccessService_RemoveAccessRule_FullMethodName):       toAdmin,
	methodName(setpointv1.AccessService_ListAccessRules_FullMethodName):        toAdmin,
	methodName(setpointv1.AccessService_CheckAccess_FullMethodName):            anything,
	methodName(setpointv1.AccessService_BatchCheckAccess_FullMethodName):       anything,
	methodName(setpointv1.AccessService_ListAuditEvents_FullMethodName):        toAdmin,

	methodName(setpointv1.TokenService_CreateToken_FullMethodName): toAdmin,
	methodName(setpointv1.TokenService_ListTokens_FullMethodName):  toAdmin,
	methodName(setpointv1.TokenService_RevokeToken_FullMethodName): toAdmin,
}

// methodName is the full name of an RPC as the audit has it, of the path that gRPC calls it by.
func methodName(path string) string { return strings.TrimPrefix(path, "/") }
