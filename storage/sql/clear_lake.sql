-- Everything that a rebuild makes anew. Volumes stay: bills were made of them. Plans that are open are cancelled, and
-- the others kept, so that whoever holds one hears that it is too late.
WITH ranges AS (DELETE FROM lake_file_ranges),
    projects AS (DELETE FROM lake_file_projects),
    exports AS (DELETE FROM lake_exports),
    tails AS (DELETE FROM lake_tails)
UPDATE lake_plans SET state = 'cancelled', ended_at = now() WHERE state = 'open'
